package dataplane

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// SetLeases makes the nodes of leases, except this one, the peers, each by the
// best available backend. It must be called in the network namespace of Open,
// and not concurrently with itself. A peer whose path does not change is not
// disturbed; one whose path changes has its route replaced in one step.
//
// A failure for one peer is logged once and does not affect the others. again
// reports whether the same leases should be set again after a few seconds:
// either something failed, or the path to a peer depends on routes of the
// underlay, which change without notice.
func (p *Plane) SetLeases(leases []lease.Lease) (again bool) {
	if !p.cfg.Settings.Carries() {
		s, _ := p.layout().state(nil)
		return !p.keeper.Set(s)
	}
	paths, senders := p.decide(leases)
	p.openUDPFor(paths)
	if b := p.backend(); b != nil {
		// Peers come before routes; otherwise packets would arrive for unknown
		// peers.
		if err := b.SetPeers(senders); err != nil {
			p.cfg.Logger.Warn("kernel path not updated, trying again", logging.KeyError, err)
			again = true
		}
	}
	if !p.claimed {
		p.keeper.Claim(p.plainRoutes())
		p.claimed = true
	}
	s, shared := p.layout().state(paths)
	p.warnShared(shared)
	done := p.keeper.Set(s)
	p.mu.Lock()
	p.paths = paths
	p.mu.Unlock()
	plain := slices.ContainsFunc(paths, func(to *path) bool { return to.kind == backend.HostGW })
	return again || !done || p.udpFault != "" || len(p.reasons) > 0 || plain || p.cfg.Settings.DirectRouting
}

// openUDPFor opens the udp backend when the first peer needs it.
func (p *Plane) openUDPFor(paths []*path) {
	if p.backend() != nil || !slices.ContainsFunc(paths, func(to *path) bool { return to.kind == backend.UDP }) {
		p.udpFault = ""
		return
	}
	err := p.openUDP()
	switch {
	case err == nil:
		p.udpFault = ""
	case err.Error() != p.udpFault:
		p.udpFault = err.Error()
		p.cfg.Logger.Warn("udp backend for peers without VXLAN unavailable, trying again", logging.KeyError, err)
	}
}

// warnShared logs, once each, the peers whose MAC address a later lease
// announces too.
func (p *Plane) warnShared(peers []vxlan.Peer) {
	shared := make(map[netip.Prefix]netip.Addr, len(peers))
	for _, v := range peers {
		shared[v.Subnet] = v.Endpoint
		if p.shared[v.Subnet] != v.Endpoint {
			p.cfg.Logger.Warn("two leases announce the same MAC address, the later one has it",
				logging.KeySubnet, v.Subnet, logging.KeyAddress, v.Endpoint)
		}
	}
	p.shared = shared
}

// plainRoutes returns the routes to the peers that stock flannel makes with its
// host-gw backend and with DirectRouting. If they stayed on the host, they
// would take precedence.
func (p *Plane) plainRoutes() (all []keep.Route) {
	for _, d := range p.decisions {
		for _, s := range d.lease.Subnets() {
			if via := d.public(s.Addr()); via.IsValid() {
				all = append(all, keep.Route{Dst: s, Via: via, Dev: p.cfg.Underlay.Name})
			}
		}
	}
	return all
}

// subnets identifies a lease, as its key does, but is cheaper to build.
type subnets struct{ v4, v6 netip.Prefix }

func subnetsOf(l lease.Lease) subnets { return subnets{l.Subnet, l.IPv6Subnet} }

// decided is the decision made for a peer.
type decided struct {
	*peer
	sends bool // it may send datagrams, whichever path leads to it
	paths []*path
	whole bool // every subnet has a path
	since uint // the round of decide in which the lease last changed
	round uint // the last round of decide that included the lease
}

// decide chooses a path for each subnet of each peer. senders are the peers
// that may send datagrams. The decision for an unchanged lease is kept until
// the cached on-link results expire.
func (p *Plane) decide(leases []lease.Lease) (paths []*path, senders []udp.Peer) {
	stale := p.links.forget()
	if inUse := p.addressesInUse(leases); !slices.Equal(inUse, p.inUse) {
		p.inUse, stale = inUse, true
	}
	p.round++
	paths, senders = make([]*path, 0, len(leases)), make([]udp.Peer, 0, len(leases))
	reasons := make(map[netip.Prefix]string)
	families := [2]family{p.family(netip.IPv4Unspecified()), p.family(netip.IPv6Unspecified())}
	own := subnetsOf(p.cfg.Own)
	for _, l := range leases {
		key := subnetsOf(l)
		if key == own {
			continue
		}
		d, ok := p.decisions[key]
		if !ok || !d.lease.Equal(l) {
			d = &decided{peer: decode(l, p.cfg.Settings.VXLAN.VNI), since: p.round}
			p.decisions[key] = d
		}
		// A peer with a subnet that has no path is decided again each time.
		if stale || !d.whole {
			p.decideFor(d, families, reasons)
		}
		d.round = p.round
		paths = append(paths, d.paths...)
		if to := d.public(families[0].udp); d.sends && to.IsValid() {
			senders = append(senders, udp.Peer{Subnets: l.Subnets(), Addr: to, Partial: d.partial, Kernel: d.kernel})
		}
	}
	if len(p.decisions) > len(leases) {
		maps.DeleteFunc(p.decisions, func(_ subnets, d *decided) bool { return d.round != p.round })
	}
	p.reasons = reasons
	return paths, senders
}

// decideFor decides for one peer. If a subnet has no path, it logs the reason
// unless that was already logged.
func (p *Plane) decideFor(d *decided, families [2]family, reasons map[netip.Prefix]string) {
	d.sends, d.paths = d.has(backend.UDP), nil
	for _, subnet := range d.lease.Subnets() {
		f := families[0]
		if subnet.Addr().Is6() {
			f = families[1]
		}
		var to path
		err := p.validate(d.peer, subnet)
		if err == nil {
			to, err = f.pathTo(d.peer, subnet)
		} else {
			d.sends = false // otherwise it could send as one of this node's pods
		}
		if err == nil {
			to.since = d.since
			d.paths = append(d.paths, &to)
			continue
		}
		reasons[subnet] = err.Error()
		if p.reasons[subnet] != reasons[subnet] {
			p.cfg.Logger.Warn("peer cannot be reached", logging.KeySubnet, subnet, logging.KeyWhy, err)
		}
	}
	d.whole = len(d.paths) == len(d.lease.Subnets())
}

// addressesInUse returns the addresses inside the networks that routes to peers
// must not cover: those of this node, of the peers, of the gateways and of the
// store.
func (p *Plane) addressesInUse(leases []lease.Lease) (all []netip.Addr) {
	add := func(a netip.Addr) {
		if a.IsValid() && slices.ContainsFunc(p.cfg.Networks, func(n netip.Prefix) bool { return n.Contains(a) }) {
			all = append(all, a)
		}
	}
	u := p.cfg.Underlay
	for _, a := range append([]netip.Addr{u.IPv4, u.IPv6, u.PublicIP, u.PublicIPv6}, p.cfg.InUse...) {
		add(a)
	}
	for _, l := range leases {
		add(l.PublicIP)
		add(l.PublicIPv6)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// validate rejects a subnet of a peer that must not be routed.
func (p *Plane) validate(of *peer, subnet netip.Prefix) error {
	for _, a := range p.inUse {
		if subnet.Contains(a) {
			return fmt.Errorf("it contains %s, an address in use outside of the pod network, which a route to the peer would cut off: set a Network that does not overlap the nodes' own", a)
		}
	}
	if public := of.public(subnet.Addr()); p.links.broadcast[public] {
		return fmt.Errorf("its public address %s is the broadcast address of a network of %s", public, p.cfg.Underlay.Name)
	}
	for _, own := range p.cfg.Own.Subnets() {
		if own.Overlaps(subnet) {
			return fmt.Errorf("it overlaps %s, which this node has: release one of the two leases (twill release)", own)
		}
	}
	if !slices.ContainsFunc(p.cfg.Networks, func(n netip.Prefix) bool { return n.Bits() < subnet.Bits() && n.Contains(subnet.Addr()) }) {
		return fmt.Errorf("it is not part of the networks %v", p.cfg.Networks)
	}
	return nil
}

// family returns the inputs for decisions about subnets of the same family as
// like.
func (p *Plane) family(like netip.Addr) family {
	f := family{
		vni:    p.cfg.Settings.VXLAN.VNI,
		direct: p.cfg.Settings.DirectRouting, plain: p.choice.Has(backend.HostGW),
		gateway: p.cfg.Underlay.IPv4.IsValid(),
		onLink:  p.links.reaches,
	}
	if like.Is6() {
		f.gateway = p.cfg.Underlay.IPv6.IsValid()
	}
	for i := range p.vteps {
		if p.vteps[i].carries(like) {
			f.vtep = &p.vteps[i].Device
		}
	}
	if p.choice.Has(backend.UDP) {
		f.udp, _ = udp.LocalAddr(p.cfg.Underlay) // an error would have made Open fail
	}
	return f
}
