// Command flannel-cni is the CNI plugin "flannel", installed under that name. A
// container runtime calls it to attach pods to the node's pod network.
package main

import (
	"os"

	"github.com/twillnet/twill/internal/cni"
	"github.com/twillnet/twill/internal/version"
)

func main() { os.Exit(cni.Main("CNI plugin flannel of twill, version " + version.String())) }
