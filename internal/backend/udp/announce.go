package udp

import (
	"encoding/json"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/tun"
)

// Announcement is what a node tells in the BackendData of its lease, by which
// nodes of twill know what others of them can. Stock flannel's udp backend
// writes none and reads none.
type Announcement struct {
	PartialChecksums bool `json:",omitempty"` // TCP and UDP checksums may be left to that of the datagram
}

// Announce returns what this node announces; the zero value if it is not
// different from a stock node.
func Announce(partialChecksums tun.Switch) Announcement {
	return Announcement{PartialChecksums: partialChecksums != tun.Off}
}

// announcements are what leases announce, by their BackendData: most have the
// same.
type announcements map[string]Announcement

// of returns what the node of l can.
func (all announcements) of(l lease.Lease) Announcement {
	a, ok := all[string(l.BackendData)]
	if !ok {
		a = announced(l)
		all[string(l.BackendData)] = a
	}
	return a
}

// announced returns what the node of l can. Of data that are of another form,
// such as another backend's, nothing is understood.
func announced(l lease.Lease) (a Announcement) {
	if json.Unmarshal(l.BackendData, &a) != nil {
		return Announcement{}
	}
	return a
}
