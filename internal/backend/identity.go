package backend

import (
	"encoding/json"

	"github.com/twillnet/twill/lease"
)

// Self is what a node knows of itself from its host.
type Self struct {
	MACs MACs
	// ID distinguishes two hosts that have one public address. Empty: it is not
	// known.
	ID string
}

// identity is the part of BackendData that says whose lease it is. A lease that is
// byte for byte as stock flannel writes it has none.
type identity struct {
	Node string `json:",omitempty"` // Self.ID
	// Challenge is the ID of a node that has found this lease under its own
	// public address. The node of the lease, if it is alive, announces itself
	// again, which removes it.
	Challenge string `json:",omitempty"`
}

func identityOf(a lease.Attrs) (id identity) {
	if json.Unmarshal(a.BackendData, &id) != nil {
		return identity{} // of another form, which says nothing of this kind
	}
	return id
}

// NodeOf returns the ID of the node that has written a, and that of the node that
// challenges it; empty where there is none.
func NodeOf(a lease.Attrs) (node, challenger string) {
	id := identityOf(a)
	return id.Node, id.Challenge
}

// Challenge returns a, which has the ID of a node, with the challenge of another. For
// the peers of that node nothing changes.
func Challenge(a lease.Attrs, by string) lease.Attrs {
	var all map[string]json.RawMessage
	if json.Unmarshal(a.BackendData, &all) != nil {
		return a
	}
	all["Challenge"], _ = json.Marshal(by) // a string always can be
	a.BackendData, _ = json.Marshal(all)   // as can what was parsed
	return a
}
