// Package cni has no code. Its module pins, by the tool lines of go.mod, the CNI
// plugins that the flannel plugin delegates to and that the image carries, and the
// cnitool by which tests call them in a container runtime's place. "make cni"
// builds them. Change the version with
//
//	go -C tools/cni get -tool github.com/containernetworking/plugins/plugins/main/bridge@VERSION
package cni
