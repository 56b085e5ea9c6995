package udp

import (
	"encoding/json"

	"github.com/twillnet/twill/internal/offload"
	"github.com/twillnet/twill/lease"
)

// announcement is the BackendData of a lease, by which nodes of twill know what
// others of them can. Stock flannel's udp backend writes none and reads none.
type announcement struct {
	PartialChecksums bool // TCP and UDP checksums may be left to that of the datagram
}

// BackendData returns what this node announces in its lease; nil if it is not
// different from a stock node.
func BackendData(partialChecksums offload.Switch) json.RawMessage {
	if partialChecksums == offload.Off {
		return nil
	}
	b, err := json.Marshal(announcement{PartialChecksums: true})
	if err != nil {
		panic(err) // a struct of a bool
	}
	return b
}

// announced returns what the node of l can. Of data that are of another form,
// such as another backend's, nothing is understood.
func announced(l lease.Lease) (a announcement) {
	if json.Unmarshal(l.BackendData, &a) != nil {
		return announcement{}
	}
	return a
}
