package udp

import (
	"net/netip"
	"slices"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/lease"
)

// peersOf turns leases into a snapshot of peers. Peers of the snapshot old that
// are the same keep their value, and with it their counters. A node without a
// public address of the family of local is none. What backend a lease is of does
// not matter here.
func peersOf(leases []lease.Lease, own lease.Lease, local netip.Addr, port uint16, old *fastpath.Peers) *fastpath.Peers {
	known := make(map[netip.AddrPort]*fastpath.Peer, len(old.All()))
	for _, p := range old.All() {
		known[p.Endpoint] = p
	}
	all := make([]*fastpath.Peer, 0, len(leases))
	said := announcements{}
	for _, l := range leases {
		if l.Subnet == own.Subnet && l.IPv6Subnet == own.IPv6Subnet { // the same key
			continue
		}
		public := l.PublicIP
		if local.Is6() {
			public = l.PublicIPv6
		}
		if !public.IsValid() {
			continue
		}
		endpoint := netip.AddrPortFrom(public, port)
		subnets := subnetsOf(l)
		partial := said.of(l).PartialChecksums
		p, ok := known[endpoint]
		if !ok || !slices.Equal(p.Subnets, subnets) || p.Partial != partial {
			p = fastpath.NewPeer(subnets, endpoint)
			p.Partial = partial
		}
		all = append(all, p)
	}
	return fastpath.NewPeers(subnetsOf(own), all)
}

// subnetsOf returns the pod subnets of l.
func subnetsOf(l lease.Lease) []netip.Prefix {
	var s []netip.Prefix
	for _, p := range []netip.Prefix{l.Subnet, l.IPv6Subnet} {
		if p.IsValid() {
			s = append(s, p)
		}
	}
	return s
}
