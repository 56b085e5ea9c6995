package doctor

import (
	"cmp"
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/lease"
)

// path leads to the pods of one subnet of another node. A node with subnets of both
// families has two.
type path struct {
	subnet netip.Prefix
	public netip.Addr // where packets for the subnet go on the underlay
	way    backend.Kind
	port   int // of UDP, where the packets come in; 0: they are not in datagrams
}

// paths returns those that the daemon has, or else those that the leases allow.
func (x *examination) paths() []path {
	var all []path
	add := func(subnet netip.Prefix, public netip.Addr, way backend.Kind) {
		if public.IsValid() {
			all = append(all, path{subnet, public, way, x.portOf(way)})
		}
	}
	if dp := x.dataplane(); dp != nil {
		for _, p := range dp.Peers {
			for _, s := range p.Subnets {
				way := wayOf(p.Backend)
				add(s, x.publicFor(s, p.PublicIP, way), way)
			}
		}
		return all
	}
	for _, l := range x.Leases {
		if l.Subnet == x.Env.Subnet && l.IPv6Subnet == x.Env.IPv6Subnet {
			continue // this node's
		}
		way := wayOf(l.BackendType)
		for _, s := range l.Subnets() {
			add(s, publicOf(l, s, way), way)
		}
	}
	return all
}

// wayOf reads the type of a lease's backend; udp's leases have none.
func wayOf(backendType string) backend.Kind {
	if backendType == "" {
		return backend.UDP
	}
	return backend.Kind(backendType)
}

// publicOf returns the address on the underlay to which packets for a subnet of l
// go: plain routes and devices of a family lead to the address of that family,
// udp's datagrams to IPv4 where there is a choice, and where there is none VXLAN
// carries both families over the address that there is.
func publicOf(l lease.Lease, subnet netip.Prefix, way backend.Kind) netip.Addr {
	same, other := l.PublicIP, l.PublicIPv6
	if subnet.Addr().Is6() {
		same, other = other, same
	}
	switch {
	case way == backend.UDP:
		return cmp.Or(l.PublicIP, l.PublicIPv6)
	case way == backend.VXLAN:
		return cmp.Or(same, other)
	}
	return same
}

// publicFor is publicOf for a peer of the daemon, whose status has only the first
// address of a node; the lease has both.
func (x *examination) publicFor(subnet netip.Prefix, first netip.Addr, way backend.Kind) netip.Addr {
	for _, l := range x.Leases {
		if way != backend.UDP && (l.Subnet == subnet || l.IPv6Subnet == subnet) {
			if a := publicOf(l, subnet, way); a.IsValid() {
				return a
			}
		}
	}
	return first
}

// outerSize is the size of the packet on the underlay that carries an inner one,
// bytes.
func (p path) outerSize(inner int) int {
	switch {
	case inner == 0:
		return smallest // not known
	case p.way == backend.HostGW:
		return inner
	case p.way == backend.VXLAN:
		return inner + vxlan.Overhead(p.public)
	}
	return inner + headers(p.public) + udpHeader
}

// tunnelled says whether the peer's device has an address that answers pings:
// that of its subnet.
func (p path) tunnelled() bool { return p.way != backend.HostGW }
