package backend

import (
	"cmp"
	"encoding/json"
	"net"
	"strings"

	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// Self is what a node knows of itself from its host.
type Self struct {
	MACs MACs
	// ID distinguishes two hosts that have one public address. Empty: it is not
	// known.
	ID string
	// Leases are those of all nodes, as far as they are known, and Own is this
	// node's; its subnets are invalid before it has one.
	Leases []lease.Lease
	Own    lease.Lease
}

// hasMAC reports whether another node announces the Ethernet address, or, with
// earlier, whether one does whose subnet is the lesser: of two running nodes with
// one address, one keeps it.
func (s *Self) hasMAC(mac net.HardwareAddr, earlier bool) bool {
	text := mac.String()
	own := subnetsOf(s.Own)
	for _, l := range s.Leases {
		if !strings.Contains(string(l.BackendData), text) && !strings.Contains(string(l.BackendV6Data), text) {
			continue // as most, at little cost
		}
		if node, _ := NodeOf(l.Attrs); subnetsOf(l) == own || node != "" && node == s.ID {
			continue // this node's former one, say
		}
		if !earlier || own == (subnets{}) || compareSubnets(subnetsOf(l), own) < 0 {
			return true
		}
	}
	return false
}

func compareSubnets(a, b subnets) int {
	return cmp.Or(a.v4.Addr().Compare(b.v4.Addr()), a.v6.Addr().Compare(b.v6.Addr()))
}

// macFor returns the address of the VXLAN device v: that of the device that is
// there, or else the one that follows from the node's public address, in either
// case unless another node has it. Frames to an address that two nodes have all go
// to one of them.
func (s *Self) macFor(v plannedVTEP, u underlay.Interface, vni int) net.HardwareAddr {
	if mac := s.MACs.of(v); mac != nil && !s.hasMAC(mac, true) {
		return mac
	}
	public := u.PublicIP
	if !public.IsValid() {
		public = u.PublicIPv6
	}
	const most = 100 // each is another's by a chance of 1 in 2^46
	mac := v.ownMAC(u, vni)
	for n := 1; s.hasMAC(mac, false) && n < most; n++ {
		mac = vxlan.SpareMAC(public, vni, v.ipv6Name, n)
	}
	return mac
}

// SameVTEPs reports whether two announcements of a node have the same VXLAN
// devices.
func SameVTEPs(a, b lease.Attrs) bool {
	for _, texts := range [][2]json.RawMessage{{a.BackendData, b.BackendData}, {a.BackendV6Data, b.BackendV6Data}} {
		f, g := fieldsOf(texts[0]), fieldsOf(texts[1])
		if string(f.VtepMAC) != string(g.VtepMAC) || string(f.VNI) != string(g.VNI) {
			return false
		}
	}
	return true
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
