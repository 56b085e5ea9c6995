// Package integration is empty. It stands for etcd's package of this name, which
// nothing here runs: see "Why a module of its own" in the README.
package integration
