package backend

import (
	"encoding/json"
	"slices"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// announcement is the BackendData of a lease. The keys of VXLAN come first, as
// stock flannel writes them; it passes over the others.
type announcement struct {
	*vxlan.Data       // nil: no VXLAN for IPv4
	Backends    []Way `json:",omitempty"` // more than one; else BackendType says it all
	// DirectRouting of a node that says nothing of its backend: stock's udp
	// backend has it not.
	DirectRouting bool `json:",omitempty"`
	udp.Announcement
	identity
}

// vteps are the VXLAN devices of a node, by the family of the pods; nil where it
// has none.
type vteps struct{ v4, v6 *vxlan.Data }

// attrs is what the node with an ID announces about itself.
func (s Settings) attrs(c Choice, u underlay.Interface, v vteps, a udp.Announcement, id string) lease.Attrs {
	var out lease.Attrs
	// The others conclude from them over which families the devices are.
	if u.IPv4.IsValid() {
		out.PublicIP = u.PublicIP
	}
	if u.IPv6.IsValid() {
		out.PublicIPv6 = u.PublicIPv6
	}
	data := announcement{Data: v.v4}
	if c.First() == UDP { // of which stock says nothing
		data.DirectRouting = s.DirectRouting
	} else {
		out.BackendType = string(c.First())
	}
	if len(c.Ways) > 1 {
		data.Backends = c.Ways
	}
	if c.Knows(UDP) {
		data.Announcement = a
	}
	// What stock flannel writes stays what stock flannel writes.
	if data.DirectRouting || data.Backends != nil || data.Announcement != (udp.Announcement{}) {
		data.Node = id
	}
	out.BackendData = encode(data)
	if v.v6 != nil {
		out.BackendV6Data = encode(announcement{Data: v.v6})
	}
	return out
}

// encode returns nil for what says nothing.
func encode(a announcement) json.RawMessage {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // numbers, strings and truths
	}
	if string(b) == "{}" {
		return nil
	}
	return b
}

// waysOf returns the ways that the node of l knows. Those of another kind, such
// as a backend that only stock flannel has, are not among them.
func waysOf(l lease.Lease) []Way {
	var a struct{ Backends []Way }
	// What is of another form says nothing of this kind.
	if json.Unmarshal(l.BackendData, &a) == nil && len(a.Backends) > 0 {
		return slices.DeleteFunc([]Way{VXLAN, UDP, HostGW}, func(w Way) bool { return !slices.Contains(a.Backends, w) })
	}
	switch w := Way(l.BackendType); w {
	case "":
		return []Way{UDP} // stock's udp backend writes none
	case UDP, VXLAN, HostGW:
		return []Way{w}
	case typeAuto: // only in a file, where nodes do not write
		return []Way{VXLAN, UDP}
	}
	return nil
}

// answersPlain says whether the node of l sends to peers on its link by plain
// routes where the network configuration has DirectRouting. One that does not
// may take packets that come so for forged (rp_filter).
func answersPlain(l lease.Lease) bool {
	var a struct{ DirectRouting bool }
	return l.BackendType != "" || json.Unmarshal(l.BackendData, &a) == nil && a.DirectRouting
}

// tellsVTEP says whether l tells of a VXLAN device, be it nonsense.
func tellsVTEP(l lease.Lease) bool {
	for _, text := range []json.RawMessage{l.BackendData, l.BackendV6Data} {
		var d struct{ VNI, VtepMAC json.RawMessage }
		if len(text) > 0 && (json.Unmarshal(text, &d) != nil || d.VNI != nil || d.VtepMAC != nil) {
			return true
		}
	}
	return false
}

func knows(ways []Way, w Way) bool { return slices.Contains(ways, w) }
