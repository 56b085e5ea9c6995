package udp

import "github.com/twillnet/twill/tun"

// Announcement is what a node announces in the BackendData of its lease, by which
// nodes of twill know what others of them can do. Stock flannel's udp backend
// writes none and reads none.
type Announcement struct {
	PartialChecksums bool `json:",omitempty"` // TCP and UDP checksums may be left to that of the datagram
}

// Announce returns what this node announces; the zero value if it is not
// different from a stock node.
func Announce(partialChecksums tun.Switch) Announcement {
	return Announcement{PartialChecksums: partialChecksums != tun.Off}
}
