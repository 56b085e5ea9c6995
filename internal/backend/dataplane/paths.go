package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
)

// path is how packets reach a subnet of a peer.
type path struct {
	peer   *peer
	subnet netip.Prefix // of the peer's pods
	kind   backend.Kind
	via    netip.Addr // the peer's address on the underlay
	vtep   vxlan.Peer // set if kind is VXLAN
	since  uint       // the round in which the peer's lease last changed; higher is later
}

// family holds the inputs for choosing paths for one address family of pods.
// The zero value is for a family in which the node has no pods.
type family struct {
	vni     int           // that of vtep
	vtep    *vxlan.Device // nil if there is none
	udp     netip.Addr    // the address of the udp backend's socket; invalid if there is none
	gateway bool          // plain routes are possible: the underlay has an address of this family
	direct  bool          // plain routes are preferred, to peers that use them too
	plain   bool          // plain routes are the only backend of this node
	// onLink reports whether an address is reached without a gateway.
	onLink func(netip.Addr) bool
}

// pathTo decides how packets reach subnet, which belongs to p. The error gives
// the reason if they cannot, and the remedy.
func (f family) pathTo(p *peer, subnet netip.Prefix) (path, error) {
	to := path{peer: p, subnet: subnet}
	gateway := p.public(subnet.Addr())
	onLink := func() bool { return f.gateway && gateway.IsValid() && f.onLink(gateway) }
	if (f.plain || f.direct && p.direct) && onLink() {
		to.kind, to.via = backend.HostGW, gateway
		return to, nil
	}
	var why []error
	if f.vtep != nil && p.has(backend.VXLAN) {
		vtep, err := f.vtepOf(p, subnet)
		if err == nil {
			to.kind, to.via, to.vtep = backend.VXLAN, vtep.Endpoint, vtep
			return to, nil
		}
		why = append(why, err)
	}
	if f.udp.IsValid() && p.has(backend.UDP) {
		err := p.noUDP
		if err == nil && p.socket.Is4() != f.udp.Is4() {
			err = fmt.Errorf("its udp socket is at %s, this node's at %s, of another address family", p.socket, f.udp)
		}
		if err == nil {
			to.kind, to.via = backend.UDP, p.socket
			return to, nil
		}
		why = append(why, err)
	}
	if p.has(backend.HostGW) && onLink() {
		to.kind, to.via = backend.HostGW, gateway
		return to, nil
	}
	switch {
	case len(why) > 0:
	case f.plain || p.has(backend.HostGW):
		why = append(why, errors.New("plain routes lead to peers on the same link only, and it is behind a gateway"))
	case len(p.kinds) == 0:
		why = append(why, fmt.Errorf("its backend is %q, which this node does not have", brief(p.lease.BackendType)))
	default:
		why = append(why, fmt.Errorf("its backends are %v, of which this node has none: start twilld with --backend=auto on either", p.kinds))
	}
	return to, errors.Join(why...)
}

// vtepOf returns the VXLAN device of p that serves the pods of subnet.
func (f family) vtepOf(p *peer, subnet netip.Prefix) (vxlan.Peer, error) {
	v := p.vtep(subnet.Addr())
	switch {
	case v.err != nil:
		return vxlan.Peer{}, v.err
	case v.VNI != f.vni:
		return vxlan.Peer{}, fmt.Errorf("its VXLAN is number %d, this node's %d", v.VNI, f.vni)
	case v.local.Is4() != f.vtep.Local.Is4():
		return vxlan.Peer{}, fmt.Errorf("its VXLAN device for these pods is at %s, this node's at %s, of another address family", v.local, f.vtep.Local)
	}
	to := vxlan.Peer{Subnet: subnet, MAC: net.HardwareAddr(v.VtepMAC), Endpoint: v.local}
	return to, f.vtep.CheckPeer(to)
}

// brief truncates text from another node so that it fits into a message.
func brief(s string) string {
	const most = 40
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
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
