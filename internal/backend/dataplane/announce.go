package dataplane

import (
	"cmp"
	"encoding/json"
	"net"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// announcement is the BackendData of a lease. The VXLAN keys come first, as
// stock flannel writes them; stock flannel ignores all other keys.
type announcement struct {
	*vxlan.Data                // nil: no VXLAN for IPv4
	Backends    []backend.Kind `json:",omitempty"` // set if there is more than one; otherwise BackendType is enough
	// DirectRouting is set only where BackendType is empty, that is for the udp
	// backend, which has no DirectRouting in stock flannel.
	DirectRouting bool `json:",omitempty"`
	udp.Announcement
	identity
}

// vteps are the VXLAN devices of a node by the address family of the pods, nil
// for a family without one.
type vteps struct{ v4, v6 *vxlan.Data }

// attrs returns what the node with the given ID announces about itself.
func attrs(s backend.Settings, c backend.Choice, u underlay.Interface, v vteps, a udp.Announcement, id string) lease.Attrs {
	var out lease.Attrs
	// The peers infer from the public addresses which families the VXLAN devices use.
	if u.IPv4.IsValid() {
		out.PublicIP = u.PublicIP
	}
	if u.IPv6.IsValid() {
		out.PublicIPv6 = u.PublicIPv6
	}
	data := announcement{Data: v.v4}
	if c.First() == backend.UDP { // stock flannel writes no BackendType for it
		data.DirectRouting = s.DirectRouting
	} else {
		out.BackendType = string(c.First())
	}
	if len(c.Kinds) > 1 {
		data.Backends = c.Kinds
	}
	if c.Has(backend.UDP) {
		data.Announcement = a
	}
	// A lease that stock flannel could have written stays byte for byte the
	// same.
	if data.DirectRouting || data.Backends != nil || data.Announcement != (udp.Announcement{}) {
		data.Node = id
	}
	out.BackendData = encode(data)
	if v.v6 != nil {
		out.BackendV6Data = encode(announcement{Data: v.v6})
	}
	return out
}

// encode returns nil for an empty announcement.
func encode(a announcement) json.RawMessage {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // unreachable: only numbers, strings and booleans
	}
	if string(b) == "{}" {
		return nil
	}
	return b
}

// Self is what a node knows about itself from its host.
type Self struct {
	MACs MACs
	// ID distinguishes two hosts with the same public address. It is empty if
	// unknown.
	ID string
	// Leases are the known leases of all nodes, and Own is the lease of this
	// node. The subnets of Own are invalid until it has a lease.
	Leases []lease.Lease
	Own    lease.Lease
}

// hasMAC reports whether another node announces the Ethernet address mac. With
// earlier set, it considers only nodes with a lower subnet, so that exactly one of two
// running nodes that share an address keeps it.
func (s *Self) hasMAC(mac net.HardwareAddr, earlier bool) bool {
	text := mac.String()
	own := subnetsOf(s.Own)
	for _, l := range s.Leases {
		if !strings.Contains(string(l.BackendData), text) && !strings.Contains(string(l.BackendV6Data), text) {
			continue // a cheap test that rules out most leases
		}
		if node, _ := NodeOf(l.Attrs); subnetsOf(l) == own || node != "" && node == s.ID {
			continue // a previous lease of this node, for example
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

// macFor returns the address of the VXLAN device v: that of the existing device
// or, if there is none, the one derived from the node's public address. Neither
// is used if another node has it, since all frames to a shared address go to
// only one of the nodes.
func (s *Self) macFor(v plannedVTEP, u underlay.Interface, vni int) net.HardwareAddr {
	if mac := s.MACs.of(v); mac != nil && !s.hasMAC(mac, true) {
		return mac
	}
	const most = 100 // each is taken with a chance of 1 in 2^46
	mac := v.ownMAC(u, vni)
	for n := 1; s.hasMAC(mac, false) && n < most; n++ {
		mac = vxlan.SpareMAC(cmp.Or(u.PublicIP, u.PublicIPv6), vni, v.ipv6Name, n)
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

// identity is the part of BackendData that identifies the node that holds the
// lease. It is empty in a lease that is byte for byte what stock flannel
// writes.
type identity struct {
	Node string `json:",omitempty"` // Self.ID
	// Challenge is the ID of a node that found this lease under its own public
	// address. If the node that holds the lease is alive, it renews its
	// announcement, which removes the challenge.
	Challenge string `json:",omitempty"`
}

// NodeOf returns the ID of the node that wrote a, and the ID of the node that
// challenges it. Each is empty if there is none.
func NodeOf(a lease.Attrs) (node, challenger string) {
	f := fieldsOf(a.BackendData)
	return f.text(f.Node), f.text(f.Challenge)
}

// Challenge returns a with the challenge of another node added. a must have the
// ID of a node. Nothing changes for that node's peers.
func Challenge(a lease.Attrs, by string) lease.Attrs {
	var all map[string]json.RawMessage
	if json.Unmarshal(a.BackendData, &all) != nil {
		return a
	}
	all["Challenge"], _ = json.Marshal(by) // a string can always be encoded
	a.BackendData, _ = json.Marshal(all)   // and so can a value that was just decoded
	return a
}
