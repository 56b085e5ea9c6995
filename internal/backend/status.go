package backend

import (
	"net/netip"

	"github.com/twillnet/twill/internal/status"
)

// Status tells how the plane runs. It may be called at any time, from any
// goroutine.
func (p *Plane) Status() status.Dataplane {
	p.mu.Lock()
	b, hops := p.udp, p.hops
	p.mu.Unlock()
	var d status.Dataplane
	traffic := make(map[netip.Addr]status.Peer)
	if b != nil {
		d = b.Status()
		for _, peer := range d.Peers {
			traffic[peer.PublicIP] = peer
		}
	}
	d.Devices = append(p.devices(), d.Devices...)
	d.Peers = peersOf(hops, traffic)
	return d
}

// devices returns the devices of the kernel's own that carry packets of pods.
func (p *Plane) devices() []status.Device {
	var all []status.Device
	for _, v := range p.vteps {
		all = append(all, status.Device{Name: v.Name(), Kind: status.KindVXLAN, Why: p.choice.Why, MTU: v.MTU()})
	}
	if p.choice.First() == HostGW {
		all = append(all, status.Device{Name: p.cfg.Underlay.Name, Kind: status.KindHostGW, Why: p.choice.Why, MTU: p.cfg.Underlay.MTU})
	}
	return all
}

// peersOf makes one peer of the hops that lead to the same node in the same way.
// What went to and came from it is known of the udp backend only.
func peersOf(hops []*hop, traffic map[netip.Addr]status.Peer) []status.Peer {
	peers := make([]status.Peer, 0, len(hops))
	for i, h := range hops {
		if i > 0 && hops[i-1].way == h.way && subnetsOf(hops[i-1].peer) == subnetsOf(h.peer) {
			last := &peers[len(peers)-1]
			last.Subnets = append(last.Subnets, h.subnet)
			continue
		}
		peer := status.Peer{PublicIP: h.via}
		if h.way == UDP {
			peer = traffic[h.via]
			peer.PublicIP = h.via
		}
		peer.Subnets, peer.Backend = []netip.Prefix{h.subnet}, string(h.way)
		peers = append(peers, peer)
	}
	return peers
}
