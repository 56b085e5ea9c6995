package backend

import (
	"encoding/json"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// announcement is the BackendData of a lease. The keys of VXLAN come first, as
// stock flannel writes them; it passes over the others.
type announcement struct {
	*vxlan.Data        // nil: no VXLAN for IPv4
	Backends    []Kind `json:",omitempty"` // more than one; else BackendType says it all
	// DirectRouting of a node that says nothing of its backend: stock's udp
	// backend does not have it.
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
	if len(c.Kinds) > 1 {
		data.Backends = c.Kinds
	}
	if c.Has(UDP) {
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

// encode returns nil for an announcement that is empty.
func encode(a announcement) json.RawMessage {
	b, err := json.Marshal(a)
	if err != nil {
		panic(err) // numbers, strings and booleans
	}
	if string(b) == "{}" {
		return nil
	}
	return b
}
