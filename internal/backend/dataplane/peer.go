package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// peer is another node: the contents of its lease, decoded once.
type peer struct {
	lease lease.Lease
	kinds []backend.Kind // the backends that it has and this package knows, best first
	// direct reports whether the peer sends to nodes on its link by plain
	// routes if the network configuration has DirectRouting. A peer that does
	// not may drop packets that arrive that way as spoofed (rp_filter).
	direct  bool
	partial bool       // it accepts partial checksums
	kernel  bool       // it accepts datagrams from the kernel path
	socket  netip.Addr // address of its udp backend, as [udp.LocalAddr] chooses it
	noUDP   error      // why socket is invalid
	v4, v6  vtep       // its VXLAN devices for its IPv4 and IPv6 pods
}

// vtep is a VXLAN device of a peer.
type vtep struct {
	vxlan.Data
	local netip.Addr // on the underlay
	err   error      // why it cannot be used
}

// decode reads the announcement in l. If it does not mention a VXLAN device, as
// in a file written by hand, the MAC is the one that a twill node chooses by
// default for the given VNI.
func decode(l lease.Lease, vni int) *peer {
	f := fieldsOf(l.BackendData)
	p := &peer{lease: l, kinds: f.kinds(l.BackendType)}
	p.direct = l.BackendType != "" || f.isTrue(f.DirectRouting)
	p.partial = f.isTrue(f.PartialChecksums)
	p.kernel = f.isTrue(f.KernelPath)
	u := underlayOf(l)
	p.socket, p.noUDP = udp.LocalAddr(u)
	says := f.saysVTEP() || fieldsOf(l.BackendV6Data).saysVTEP()
	planned, err := planVTEPs(u, l.Subnet.IsValid(), l.IPv6Subnet.IsValid())
	p.v4.err, p.v6.err = err, err
	for _, d := range planned {
		v := vtep{local: d.local}
		text := l.BackendV6Data
		if d.ipv4 {
			text = l.BackendData
		}
		if says {
			v.Data, v.err = vxlan.ParseData(text)
		} else {
			v.Data = vxlan.Data{VNI: vni, VtepMAC: vxlan.HardwareAddr(d.ownMAC(u, vni))}
		}
		if d.ipv4 {
			p.v4 = v
		}
		if d.ipv6 {
			p.v6 = v
		}
	}
	return p
}

// vtep returns the VXLAN device that serves pods of the family of a.
func (p *peer) vtep(a netip.Addr) vtep {
	if a.Is4() {
		return p.v4
	}
	return p.v6
}

// public returns the peer's public address of the same family as like.
func (p *peer) public(like netip.Addr) netip.Addr {
	if like.Is4() {
		return p.lease.PublicIP
	}
	return p.lease.PublicIPv6
}

func (p *peer) has(k backend.Kind) bool { return slices.Contains(p.kinds, k) }

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
			err = fmt.Errorf("its udp address %s and this node's %s are of different address families", p.socket, f.udp)
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
		why = append(why, errors.New("plain routes reach only peers on the same link, and this one is behind a gateway"))
	case len(p.kinds) == 0:
		why = append(why, fmt.Errorf("its backend is %q, which this node does not support", brief(p.lease.BackendType)))
	default:
		why = append(why, fmt.Errorf("its backends are %v, of which this node uses none: start twilld with --backend=auto on either node", p.kinds))
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
		return vxlan.Peer{}, fmt.Errorf("its VNI is %d, this node's is %d", v.VNI, f.vni)
	case v.local.Is4() != f.vtep.Local.Is4():
		return vxlan.Peer{}, fmt.Errorf("its VTEP address %s for these pods and this node's %s are of different address families", v.local, f.vtep.Local)
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

// validate rejects a subnet of a peer that must not be routed.
func (p *Plane) validate(of *peer, subnet netip.Prefix) error {
	for _, a := range p.inUse {
		if subnet.Contains(a) {
			return fmt.Errorf("it contains %s, which is in use outside the pod network and which a route to the peer would cut off: set a Network that does not overlap the nodes' own network", a)
		}
	}
	for _, a := range of.lease.Addrs() {
		if _, is := slices.BinarySearchFunc(p.misplaced, a, netip.Addr.Compare); is {
			return fmt.Errorf("its public address %s is in a pod subnet: choose another with --iface or --public-ip on that node", a)
		}
	}
	if public := of.public(subnet.Addr()); p.links.broadcast[public] {
		return fmt.Errorf("its public address %s is a broadcast address of interface %s: choose another with --iface or --public-ip on that node", public, p.cfg.Underlay.Name)
	}
	for _, own := range p.cfg.Own.Subnets() {
		if own.Overlaps(subnet) {
			return fmt.Errorf("it overlaps this node's subnet %s: release one of the two leases (twill release)", own)
		}
	}
	if !slices.ContainsFunc(p.cfg.Networks, func(n netip.Prefix) bool { return n.Bits() < subnet.Bits() && n.Contains(subnet.Addr()) }) {
		return fmt.Errorf("it is outside the networks %v", p.cfg.Networks)
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
	if p.choice.Has(backend.UDP) || p.backend() != nil {
		f.udp, _ = udp.LocalAddr(p.cfg.Underlay) // an error would have made Open fail
	}
	return f
}

// fields are the keys of BackendData. If it is not a JSON object, broken is
// set; a key whose value has an unexpected type is ignored.
type fields struct {
	VNI, VtepMAC     json.RawMessage
	Backends         json.RawMessage
	DirectRouting    json.RawMessage
	PartialChecksums json.RawMessage
	KernelPath       json.RawMessage
	Node, Challenge  json.RawMessage // see identity
	broken           bool
}

func fieldsOf(text json.RawMessage) (f fields) {
	if len(text) > 0 && json.Unmarshal(text, &f) != nil {
		return fields{broken: true}
	}
	return f
}

func (f fields) isTrue(text json.RawMessage) (is bool) {
	return json.Unmarshal(text, &is) == nil && is
}

func (f fields) text(text json.RawMessage) (s string) {
	if json.Unmarshal(text, &s) != nil {
		return ""
	}
	return s
}

// kinds returns the backends of a node with this BackendType. It leaves out
// unknown ones, such as those that only stock flannel has.
func (f fields) kinds(backendType string) []backend.Kind {
	var all []backend.Kind
	if json.Unmarshal(f.Backends, &all) == nil && len(all) > 0 {
		return slices.DeleteFunc([]backend.Kind{backend.VXLAN, backend.UDP, backend.HostGW}, func(k backend.Kind) bool { return !slices.Contains(all, k) })
	}
	switch k := backend.Kind(backendType); k {
	case "":
		return []backend.Kind{backend.UDP} // stock flannel's udp backend writes no BackendType
	case backend.UDP, backend.VXLAN, backend.HostGW:
		return []backend.Kind{k}
	case backend.TypeAuto: // only in a file that no node writes to
		return []backend.Kind{backend.VXLAN, backend.UDP}
	}
	return nil
}

// saysVTEP reports whether the lease announces a VXLAN device, even an invalid
// one.
func (f fields) saysVTEP() bool { return f.broken || f.VNI != nil || f.VtepMAC != nil }

// underlayOf returns the underlay interface of the node of l, as far as peers
// know it.
func underlayOf(l lease.Lease) underlay.Interface {
	return underlay.Interface{
		Name: "of the peer", IPv4: l.PublicIP, PublicIP: l.PublicIP, IPv6: l.PublicIPv6, PublicIPv6: l.PublicIPv6,
	}
}
