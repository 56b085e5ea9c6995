package dataplane

import (
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// Status reports the state of the plane. It may be called at any time, from any
// goroutine.
func (p *Plane) Status() status.Dataplane {
	p.mu.Lock()
	b, paths, unreached := p.udp, p.paths, p.unreached
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
	d.Peers, d.Unreached = peersOf(paths, traffic), unreached
	return d
}

// devices returns the in-kernel tunnel devices that carry packets of pods.
func (p *Plane) devices() []status.Device {
	var all []status.Device
	for i := range p.vteps {
		v := &p.vteps[i]
		all = append(all, status.Device{Name: v.Name(), Kind: status.KindVXLAN, Why: p.choice.Why, MTU: int(v.TunnelMTU())})
	}
	if p.choice.First() == backend.HostGW {
		all = append(all, status.Device{Name: p.cfg.Underlay.Name, Kind: status.KindHostGW, Why: p.choice.Why, MTU: p.cfg.Underlay.MTU})
	}
	return all
}

// peersOf combines the paths to the same node by the same backend into one
// peer. Traffic counters exist for the udp backend only.
func peersOf(paths []*path, traffic map[netip.Addr]status.Peer) []status.Peer {
	peers := make([]status.Peer, 0, len(paths))
	for i, to := range paths {
		if i > 0 && paths[i-1].kind == to.kind && paths[i-1].peer == to.peer {
			last := &peers[len(peers)-1]
			last.Subnets = append(last.Subnets, to.subnet)
			continue
		}
		peer := status.Peer{PublicIP: to.via}
		if to.kind == backend.UDP {
			peer = traffic[to.via]
			peer.PublicIP = to.via
		}
		peer.Subnets, peer.Backend = []netip.Prefix{to.subnet}, string(to.kind)
		peers = append(peers, peer)
	}
	return peers
}

// Traffic returns what each backend has carried: for udp as counted by its engine, for
// vxlan as counted by the kernel on the devices. Plain routes use the interface of the
// host, where packets of pods cannot be distinguished from others. It may be called at
// any time before Close, from any goroutine.
func (p *Plane) Traffic() (all []metrics.BackendTraffic) {
	if len(p.vteps) > 0 {
		s := p.keeper.Traffic()
		all = append(all, metrics.BackendTraffic{
			Backend: string(backend.VXLAN),
			TX:      metrics.Flow{Packets: s.TxPackets, Bytes: s.TxBytes, Dropped: s.TxDropped + s.TxErrors},
			RX:      metrics.Flow{Packets: s.RxPackets, Bytes: s.RxBytes, Dropped: s.RxDropped + s.RxErrors},
		})
	}
	byName := make(map[string]*metrics.BackendTraffic)
	var names []string
	for _, c := range p.Counters() {
		name := string(backend.UDP)
		if c.Name != "" {
			name += "-" + c.Name
		}
		t := byName[name]
		if t == nil {
			t = &metrics.BackendTraffic{Backend: name}
			byName[name], names = t, append(names, name)
		}
		t.TX.Add(&c.TX)
		t.RX.Add(&c.RX)
	}
	for _, name := range names {
		all = append(all, *byName[name])
	}
	return all
}

// SetIdle adds to the peers of a Status how long the kernel has sent nothing to
// those that it reaches by VXLAN. It may be called at any time before Close,
// from any goroutine.
func (p *Plane) SetIdle(peers []status.Peer) {
	if len(p.vteps) == 0 {
		return
	}
	idle := p.keeper.Idle()
	for i := range peers {
		if since, ok := idle[peers[i].PublicIP]; ok && peers[i].Backend == string(backend.VXLAN) {
			seconds := since.Seconds()
			peers[i].Idle = &seconds
		}
	}
}
