package backend

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
)

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
		networks: p.cfg.Networks, wholeUDP: p.choice.First() == UDP,
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
		case to.kind == HostGW:
			s.Routes = append(s.Routes, keep.Route{Dst: to.subnet, Via: to.via, Dev: l.underlay})
		case to.kind == UDP && l.tun != nil && !l.wholeUDP:
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
		if to.kind == VXLAN && v.carries(to.subnet.Addr()) {
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
