package udp

import (
	"net/netip"
	"slices"

	"github.com/twillnet/twill/fastpath"
)

// Peer is another node with which datagrams are exchanged.
type Peer struct {
	Subnets []netip.Prefix // the subnets of its pods, from which it may send
	Addr    netip.Addr     // the address of its socket, of the same family as this node's
	Partial bool           // it accepts partial checksums: see Announcement
	Kernel  bool           // it accepts datagrams from the kernel path
}

// snapshot builds the engine's peer snapshot for a node with the subnets own.
// Peers that are unchanged from the snapshot old keep their value, and with it
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
