package dataplane

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
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
		return !p.keeper.Set(s) || !p.sweep()
	}
	paths, senders := p.decide(leases)
	p.openUDPFor(paths)
	if b := p.backend(); b != nil {
		// Peers come before routes; otherwise packets would arrive for unknown
		// peers.
		b.SetPeers(senders)
	}
	if !p.claimed {
		p.keeper.Claim(p.plainRoutes())
		p.claimed = true
	}
	s, shared := p.layout().state(paths)
	p.warnShared(shared)
	done := p.keeper.Set(s)
	done = p.sweep() && done
	unreached := p.unreachedNow()
	p.mu.Lock()
	p.paths, p.unreached = paths, unreached
	p.mu.Unlock()
	plain := slices.ContainsFunc(paths, func(to *path) bool { return to.kind == backend.HostGW })
	return !done || p.udpFault != "" || len(p.reasons) > 0 || plain || p.cfg.Settings.DirectRouting
}

// unreachedNow returns the subnets of other nodes that have no path, in order. It skips
// leases that name no node, which are reservations.
func (p *Plane) unreachedNow() (all []status.Unreached) {
	for _, u := range p.reasons {
		if u.PublicIP.IsValid() {
			all = append(all, u)
		}
	}
	slices.SortFunc(all, func(a, b status.Unreached) int { return a.Subnet.Compare(b.Subnet) })
	return all
}

// sweep removes the kernel path that an earlier data plane left, unless this one uses the
// udp backend too: otherwise it would accept datagrams from former peers for as long as
// the host runs. sweep returns false if it has to be called again.
func (p *Plane) sweep() (done bool) {
	if p.swept || p.backend() != nil || p.udpFault != "" {
		return true
	}
	var err error
	if p.swept, err = udp.Sweep(p.cfg.UDP.TunName); err != nil {
		p.cfg.Logger.Warn("cannot remove kernel path of an earlier data plane, retrying", logging.KeyDevice, p.cfg.UDP.TunName, logging.KeyError, err)
	}
	return p.swept
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
		p.cfg.Logger.Warn("udp backend for peers without VXLAN unavailable, retrying", logging.KeyError, err)
	}
}

// warnShared logs, once each, the peers whose MAC address a later lease
// announces too.
func (p *Plane) warnShared(peers []vxlan.Peer) {
	shared := make(map[netip.Prefix]netip.Addr, len(peers))
	for _, v := range peers {
		shared[v.Subnet] = v.Endpoint
		if p.shared[v.Subnet] != v.Endpoint {
			p.cfg.Logger.Warn("two leases announce the same MAC address, packets go to the later one",
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
	if inUse, misplaced := p.addressesInside(leases); !slices.Equal(inUse, p.inUse) || !slices.Equal(misplaced, p.misplaced) {
		p.inUse, p.misplaced, stale = inUse, misplaced, true
	}
	p.round++
	paths, senders = make([]*path, 0, len(leases)), make([]udp.Peer, 0, len(leases))
	reasons := make(map[netip.Prefix]status.Unreached)
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
func (p *Plane) decideFor(d *decided, families [2]family, reasons map[netip.Prefix]status.Unreached) {
	// A peer that changes to this backend too sends as soon as it has read that this node
	// has it, which may be before the peer's own announcement arrives here.
	d.sends, d.paths = d.has(backend.UDP) || len(p.choice.Former) > 0, nil
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
		at := cmp.Or(d.public(subnet.Addr()), d.lease.PublicIP, d.lease.PublicIPv6)
		reasons[subnet] = status.Unreached{Subnet: subnet, PublicIP: at, Why: strings.ReplaceAll(err.Error(), "\n", "; ")}
		if p.reasons[subnet].Why != reasons[subnet].Why {
			p.cfg.Logger.Warn("peer cannot be reached", logging.KeySubnet, subnet, logging.KeyWhy, err)
		}
	}
	d.whole = len(d.paths) == len(d.lease.Subnets())
}

// addressesInside examines the addresses inside the networks. inUse are those that
// routes to peers must not cover: those of this node, the gateways and the store and, if
// there are any of these, also those of the peers, since the pod network then overlaps
// the nodes' own network. Otherwise, addresses of peers within the subnet of a lease are
// misplaced: a peer must not cause another node's subnet to be refused by the address
// that it claims for itself.
func (p *Plane) addressesInside(leases []lease.Lease) (inUse, misplaced []netip.Addr) {
	inside := func(a netip.Addr) bool {
		return a.IsValid() && slices.ContainsFunc(p.cfg.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
	}
	u := p.cfg.Underlay
	for _, a := range append([]netip.Addr{u.IPv4, u.IPv6, u.PublicIP, u.PublicIPv6}, p.cfg.InUse...) {
		if inside(a) {
			inUse = append(inUse, a)
		}
	}
	var peers []netip.Addr
	for _, l := range leases {
		for _, a := range [2]netip.Addr{l.PublicIP, l.PublicIPv6} {
			if inside(a) {
				peers = append(peers, a)
			}
		}
	}
	if len(inUse) > 0 {
		return sorted(append(inUse, peers...)), nil
	}
	return nil, sorted(withSubnet(peers, leases))
}

func sorted(all []netip.Addr) []netip.Addr {
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// withSubnet returns the addresses that are in the subnet of a lease.
func withSubnet(addrs []netip.Addr, leases []lease.Lease) []netip.Addr {
	if len(addrs) == 0 {
		return nil // the usual case, which builds nothing
	}
	subnets, lengths := make(map[netip.Prefix]bool), make(map[int]bool)
	for _, l := range leases {
		for _, s := range l.Subnets() {
			subnets[s.Masked()], lengths[s.Bits()] = true, true
		}
	}
	return slices.DeleteFunc(addrs, func(a netip.Addr) bool {
		for bits := range lengths {
			if s, err := a.Prefix(bits); err == nil && subnets[s] {
				return false
			}
		}
		return true
	})
}

// layout is the part of a plane that determines the kernel's state.
type layout struct {
	underlay  string     // name of the interface
	vteps     []ownVTEP  // the VXLAN devices
	release   string     // of the kernel
	tun       *keep.Link // of the udp backend; nil if it is not open
	networks  []netip.Prefix
	wholeUDP  bool // the networks are routed to the TUN device, and udp peers have no routes of their own
	blackhole []netip.Prefix
}

// layout returns the current layout of the plane.
func (p *Plane) layout() *layout {
	l := &layout{
		underlay: p.cfg.Underlay.Name, vteps: p.vteps, release: p.cfg.release,
		networks: p.cfg.Networks, wholeUDP: p.choice.First() == backend.UDP,
	}
	if b := p.backend(); b != nil {
		tun := b.Link()
		l.tun = &tun
	}
	if p.cfg.Blackhole {
		l.blackhole = p.cfg.Own.Subnets()
	}
	return l
}

// state returns the state that the kernel should have for these paths. shared
// are VXLAN peers that cannot be reached because a later lease announces the
// same MAC address at another endpoint.
func (l *layout) state(paths []*path) (s keep.State, shared []vxlan.Peer) {
	if l.tun != nil {
		s.Links = append(s.Links, *l.tun)
	}
	for i := range l.vteps {
		v := &l.vteps[i]
		s.Links = append(s.Links, v.Link(l.release))
		shared = append(shared, v.AddPeers(&s, vxlanPeers(paths, v))...)
	}
	for _, to := range paths {
		switch {
		case to.kind == backend.HostGW:
			s.Routes = append(s.Routes, keep.Route{Dst: to.subnet, Via: to.via, Dev: l.underlay})
		case to.kind == backend.UDP && l.tun != nil && !l.wholeUDP:
			s.Routes = append(s.Routes, keep.Route{Dst: to.subnet, Dev: l.tun.Name})
		}
	}
	if l.wholeUDP && l.tun != nil {
		for _, n := range l.networks {
			s.Routes = append(s.Routes, keep.Route{Dst: n, Dev: l.tun.Name, Yield: true})
		}
	}
	for _, n := range l.blackhole {
		s.Routes = append(s.Routes, keep.Route{Dst: n, Blackhole: true})
	}
	return s, shared
}

// vxlanPeers returns the peers that v reaches, ordered by when their leases
// last changed, the latest last.
func vxlanPeers(paths []*path, v *ownVTEP) []vxlan.Peer {
	var through []*path
	for _, to := range paths {
		if to.kind == backend.VXLAN && v.carries(to.subnet.Addr()) {
			through = append(through, to)
		}
	}
	slices.SortStableFunc(through, func(a, b *path) int { return cmp.Compare(a.since, b.since) })
	peers := make([]vxlan.Peer, len(through))
	for i, to := range through {
		peers[i] = to.vtep
	}
	return peers
}
