package backend

import (
	"encoding/json"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// announcement is the BackendData of a lease. The VXLAN keys come first, as
// stock flannel writes them; stock flannel ignores all other keys.
type announcement struct {
	*vxlan.Data        // nil: no VXLAN for IPv4
	Backends    []Kind `json:",omitempty"` // set if there is more than one; otherwise BackendType is enough
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
func (s Settings) attrs(c Choice, u underlay.Interface, v vteps, a udp.Announcement, id string) lease.Attrs {
	var out lease.Attrs
	// The peers infer from these which address families the VXLAN devices use.
	if u.IPv4.IsValid() {
		out.PublicIP = u.PublicIP
	}
	if u.IPv6.IsValid() {
		out.PublicIPv6 = u.PublicIPv6
	}
	data := announcement{Data: v.v4}
	if c.First() == UDP { // stock flannel writes no BackendType for it
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
