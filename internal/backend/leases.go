package backend

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/routes"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// SetLeases makes the nodes of leases, but for this one, the peers, each by the
// best way. It must not run at the same time as itself, and runs in the network
// namespace of Open. A peer that stays where it is is not disturbed; one that
// moves does so by one route that is replaced.
//
// What cannot be done for one peer is logged, once, and done for the others. again
// says that the same leases are worth telling again after some seconds: something
// went wrong, or how a peer is reached depends on routes of the underlay, which
// change without a word.
func (p *Plane) SetLeases(leases []lease.Lease) (again bool) {
	p.failed = false
	hops, accepted := p.decide(leases)
	if err := p.openTable(leases); err != nil {
		p.note("routes", err)
		return true
	}
	if b := p.udpFor(hops); b != nil {
		// Before the routes, or else packets go where nobody knows the way.
		b.SetLeases(accepted)
	}
	// The order is stock flannel's: a packet that a route sends to a VTEP finds
	// that it is known.
	vteps, failed := p.addVTEPs(hops)
	var want, plain []routes.Route
	for _, h := range hops {
		if failed[h.subnet] {
			// Where it was reached without them it still may be.
			if r, ok := p.routes[h.subnet]; ok && !r.OnLink {
				want = append(want, r)
			}
			continue
		}
		dev := p.cfg.Underlay.Index
		switch h.way {
		case UDP:
			if p.choice.First() == UDP {
				continue // the route of the whole network leads there
			}
			b := p.backend()
			if b == nil {
				continue // it could not be opened, which is told
			}
			dev = b.Index()
		case VXLAN:
			dev = p.vteps[p.vtepOf(h.subnet.Addr())].Index()
		}
		want = append(want, h.route(dev))
		if h.way == HostGW {
			plain = append(plain, h.route(dev))
		}
	}
	p.routes = make(map[netip.Prefix]routes.Route, len(want))
	for _, r := range want {
		p.routes[r.Dst] = r
	}
	unlisted := p.memory.remember(plain, p.cfg.Underlay.Name)
	p.note("routes", p.table.Set(want))
	if !p.retired { // now that nothing leads there any more but what is to go
		err := p.retire()
		p.note("what earlier runs have left", err)
		p.retired = err == nil
	}
	p.note("the list of routes", errors.Join(unlisted, p.memory.keep(plain, p.cfg.Underlay.Name)))
	for i, v := range p.vteps {
		p.note("old entries of "+v.Name(), v.Retain(vteps[i]))
	}
	p.mu.Lock()
	p.hops = hops
	p.mu.Unlock()
	return p.failed || len(p.told) > 0 || len(plain) > 0 || p.cfg.Settings.DirectRouting
}

// addVTEPs makes the peers known to the VXLAN devices. It returns the peers of
// each, and the subnets of those that could not be made known.
func (p *Plane) addVTEPs(hops []*hop) (peers [][]vxlan.Peer, failed map[netip.Prefix]bool) {
	peers = make([][]vxlan.Peer, len(p.vteps))
	for _, h := range hops {
		if h.way == VXLAN {
			i := p.vtepOf(h.subnet.Addr())
			peers[i] = append(peers[i], h.vtep)
		}
	}
	failed = make(map[netip.Prefix]bool)
	for i, v := range p.vteps {
		err := v.Add(peers[i])
		p.note("entries of "+v.Name(), err)
		var some vxlan.PeerErrors
		errors.As(err, &some)
		for _, e := range some {
			failed[e.Peer.Subnet] = true
		}
	}
	return peers, failed
}

// subnets tell one lease from another, as its key does, which takes longer to
// make.
type subnets struct{ v4, v6 netip.Prefix }

func subnetsOf(l lease.Lease) subnets { return subnets{l.Subnet, l.IPv6Subnet} }

// decided is what was decided for a lease.
type decided struct {
	lease   lease.Lease
	accepts bool // it may send datagrams, whatever way leads to it
	hops    []*hop
	whole   bool // each of its subnets has a hop
	round   uint // of decide, that it was part of last
}

// decide chooses a hop for each subnet of each peer. accepted are the nodes that
// may send datagrams, this one included; it may be leases. What was decided for a
// lease that has not changed stands, until what is known of the link grows old.
func (p *Plane) decide(leases []lease.Lease) (hops []*hop, accepted []lease.Lease) {
	if p.links.forget() {
		clear(p.decisions)
	}
	p.round++
	hops = make([]*hop, 0, len(leases))
	refuses := false // some node
	reasons := make(map[netip.Prefix]string)
	families := [2]family{p.family(netip.IPv4Unspecified()), p.family(netip.IPv6Unspecified())}
	own := subnetsOf(p.cfg.Own)
	for _, l := range leases {
		key := subnetsOf(l)
		if key == own {
			continue
		}
		d, ok := p.decisions[key]
		// What has no way yet is asked anew each time.
		if !ok || !d.lease.Equal(l) || !d.whole {
			d = p.decideFor(l, families, reasons)
			p.decisions[key] = d
		}
		d.round = p.round
		hops = append(hops, d.hops...)
		refuses = refuses || !d.accepts
	}
	if len(p.decisions) > len(leases) {
		maps.DeleteFunc(p.decisions, func(_ subnets, d *decided) bool { return d.round != p.round })
	}
	p.told = reasons
	if !refuses { // as in most networks, of which some are large
		return hops, leases
	}
	accepted = slices.DeleteFunc(slices.Clone(leases), func(l lease.Lease) bool {
		d := p.decisions[subnetsOf(l)]
		return d != nil && !d.accepts
	})
	return hops, accepted
}

// decideFor decides for one lease, and logs why a subnet of it has no way unless
// it has been told.
func (p *Plane) decideFor(l lease.Lease, families [2]family, reasons map[netip.Prefix]string) *decided {
	d := &decided{lease: l, accepts: knows(waysOf(l), UDP)}
	for _, subnet := range l.Subnets() {
		f := families[0]
		if subnet.Addr().Is6() {
			f = families[1]
		}
		var h hop
		err := p.sound(subnet)
		if err == nil {
			h, err = f.hopTo(l, subnet)
		} else {
			d.accepts = false // or else it could send as one of this node's pods
		}
		if err == nil {
			d.hops = append(d.hops, &h)
			continue
		}
		reasons[subnet] = err.Error()
		if p.told[subnet] != reasons[subnet] {
			p.cfg.Logger.Warn("peer cannot be reached", logging.KeySubnet, subnet, logging.KeyWhy, err)
		}
	}
	d.whole = len(d.hops) == len(l.Subnets())
	return d
}

// sound refuses a subnet to which there must be no route through another node.
func (p *Plane) sound(subnet netip.Prefix) error {
	for _, own := range p.cfg.Own.Subnets() {
		if own.Overlaps(subnet) {
			return fmt.Errorf("it overlaps %s, which this node has: release one of the two leases (twill release)", own)
		}
	}
	if !slices.ContainsFunc(p.cfg.Networks, func(n netip.Prefix) bool { return n.Bits() < subnet.Bits() && n.Contains(subnet.Addr()) }) {
		return fmt.Errorf("it is no part of the networks %v", p.cfg.Networks)
	}
	return nil
}

// family returns what decides about subnets of the family of like.
func (p *Plane) family(like netip.Addr) family {
	f := family{
		vni:    p.cfg.Settings.VXLAN.VNI,
		direct: p.cfg.Settings.DirectRouting, plain: p.choice.Knows(HostGW),
		gateway: p.cfg.Underlay.IPv4.IsValid(),
		onLink:  p.links.reaches,
	}
	if like.Is6() {
		f.gateway = p.cfg.Underlay.IPv6.IsValid()
	}
	if i := p.vtepOf(like); i >= 0 {
		f.vtep = p.vteps[i].local
	}
	if p.choice.Knows(UDP) {
		f.udp, _ = udp.LocalAddr(p.cfg.Underlay) // or else Open has failed
	}
	return f
}

// vtepOf returns the index of the VXLAN device for pods of the family of like,
// -1 if there is none.
func (p *Plane) vtepOf(like netip.Addr) int {
	for i, v := range p.vteps {
		if v.carries(like) {
			return i
		}
	}
	return -1
}

// udpFor returns the udp backend, which is opened for the first peer that needs
// it; nil if none does.
func (p *Plane) udpFor(hops []*hop) *udp.Backend {
	needed := func(h *hop) bool { return h.way == UDP }
	if p.backend() == nil && slices.ContainsFunc(hops, needed) {
		p.note("udp for peers without VXLAN", p.openUDP(nil))
	}
	return p.backend()
}

// note logs what went wrong with the peers' what, once for each reason, and has
// SetLeases ask for another try.
func (p *Plane) note(what string, err error) {
	why := ""
	if err != nil {
		why = err.Error()
		p.failed = true
	}
	if p.noted[what] == why {
		return
	}
	p.noted[what] = why
	if err != nil {
		p.cfg.Logger.Warn("not all peers can be reached", logging.KeyOf, what, logging.KeyError, err)
	} else {
		p.cfg.Logger.Info("all peers can be reached again", logging.KeyOf, what)
	}
}
