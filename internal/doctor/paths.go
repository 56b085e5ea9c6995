package doctor

import (
	"cmp"
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/lease"
)

// path is the way to the pods in one subnet of another node. A node with subnets of
// both families has two.
type path struct {
	subnet netip.Prefix
	public netip.Addr // underlay address that packets for the subnet are sent to
	kind   backend.Kind
	port   int // UDP port at which the packets arrive; 0 if they are not encapsulated in UDP
}

// paths returns the paths of the daemon, or else those that follow from the
// leases.
func (x *examination) paths() []path {
	var all []path
	add := func(subnet netip.Prefix, public netip.Addr, kind backend.Kind) {
		if public.IsValid() {
			all = append(all, path{subnet, public, kind, x.portOf(kind)})
		}
	}
	if dp := x.dataplane(); dp != nil {
		for _, p := range dp.Peers {
			for _, s := range p.Subnets {
				kind := kindOf(p.Backend)
				add(s, x.publicFor(s, p.PublicIP, kind), kind)
			}
		}
		return all
	}
	for _, l := range x.Leases {
		if l.Subnet == x.Env.Subnet && l.IPv6Subnet == x.Env.IPv6Subnet {
			continue // this node's
		}
		kind := kindOf(l.BackendType)
		for _, s := range l.Subnets() {
			add(s, publicOf(l, s, kind), kind)
		}
	}
	return all
}

// kindOf returns the backend of a lease. Leases of the udp backend name none.
func kindOf(backendType string) backend.Kind {
	if backendType == "" {
		return backend.UDP
	}
	return backend.Kind(backendType)
}

// publicOf returns the underlay address to which packets for a subnet of l are
// sent. Plain routes and VXLAN devices use the address of their own family, the
// udp backend prefers IPv4, and VXLAN carries both families over the only address
// if there is just one.
func publicOf(l lease.Lease, subnet netip.Prefix, kind backend.Kind) netip.Addr {
	same, other := l.PublicIP, l.PublicIPv6
	if subnet.Addr().Is6() {
		same, other = other, same
	}
	switch {
	case kind == backend.UDP:
		return cmp.Or(l.PublicIP, l.PublicIPv6)
	case kind == backend.VXLAN:
		return cmp.Or(same, other)
	}
	return same
}

// publicFor is publicOf for a peer of the daemon, whose status has only the first
// address of a node; the lease has both.
func (x *examination) publicFor(subnet netip.Prefix, first netip.Addr, kind backend.Kind) netip.Addr {
	for _, l := range x.Leases {
		if kind != backend.UDP && (l.Subnet == subnet || l.IPv6Subnet == subnet) {
			if a := publicOf(l, subnet, kind); a.IsValid() {
				return a
			}
		}
	}
	return first
}

// outerSize returns the size in bytes of the underlay packet that carries an
// inner packet.
func (p path) outerSize(inner int) int {
	switch {
	case inner == 0:
		return echo.Smallest // unknown
	case p.kind == backend.HostGW:
		return inner
	case p.kind == backend.VXLAN:
		return inner + vxlan.Overhead(p.public)
	}
	return inner + echo.IPHeaderLen(p.public) + udpHeader
}

// tunnelled reports whether the peer's device has an address that answers
// pings: the first of its subnet.
func (p path) tunnelled() bool { return p.kind != backend.HostGW }
