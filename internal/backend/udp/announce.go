package udp

import "github.com/twillnet/twill/tun"

// Announcement is what a node announces in the BackendData of its lease, so
// that twill nodes know each other's features. Stock flannel's udp backend
// neither writes nor reads BackendData.
type Announcement struct {
	PartialChecksums bool `json:",omitempty"` // TCP and UDP checksums of inner packets may be incomplete: the datagram's checksum covers them
	KernelPath       bool `json:",omitempty"` // the kernel accepts datagrams without a checksum
}

// Announce returns what this node announces: the zero value if it has no
// feature beyond those of a stock node.
func Announce(partialChecksums tun.Switch, kernelPath bool) Announcement {
	return Announcement{PartialChecksums: partialChecksums != tun.Off, KernelPath: kernelPath}
}
