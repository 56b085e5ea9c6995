package udp

import (
	"net/netip"
	"slices"

	"github.com/twillnet/twill/fastpath"
)

// Peer is another node that datagrams go to and come from.
type Peer struct {
	Subnets []netip.Prefix // of its pods: what it may send from
	Addr    netip.Addr     // of its socket, of the family of this node's
	Partial bool           // it understands partial checksums: see Announcement
}

// snapshot turns peers into a snapshot for the engine of a node with the subnets
// own. Peers of the snapshot old that are the same keep their value, and with it
// their counters.
func snapshot(peers []Peer, own []netip.Prefix, port uint16, old *fastpath.Peers) *fastpath.Peers {
	known := make(map[netip.AddrPort]*fastpath.Peer, len(old.All()))
	for _, p := range old.All() {
		known[p.Endpoint] = p
	}
	all := make([]*fastpath.Peer, 0, len(peers))
	for _, p := range peers {
		endpoint := netip.AddrPortFrom(p.Addr, port)
		f, ok := known[endpoint]
		if !ok || !slices.Equal(f.Subnets, p.Subnets) || f.Partial != p.Partial {
			f = fastpath.NewPeer(p.Subnets, endpoint)
			f.Partial = p.Partial
		}
		all = append(all, f)
	}
	return fastpath.NewPeers(own, all)
}
