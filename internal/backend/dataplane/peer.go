package dataplane

import (
	"encoding/json"
	"net/netip"
	"slices"

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
	kernel  bool       // it takes datagrams from the kernel path
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
