// Package cni has no code. The tool lines of its go.mod pin the CNI
// plugins that the flannel plugin delegates to and that the image contains, and the
// cnitool with which tests call them in place of a container runtime. "make cni"
// builds them. Change the version with
//
//	go -C tools/cni get -tool github.com/containernetworking/plugins/plugins/main/bridge@VERSION
package cni
