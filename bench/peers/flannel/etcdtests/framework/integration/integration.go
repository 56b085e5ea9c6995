// Package integration is empty. It stands in for etcd's package of this name, which
// nothing here runs: see "Why a module of its own" in the README.
package integration
