package backend

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/twillnet/twill/internal/backend/vxlan"
)

// path is how packets reach a subnet of a peer.
type path struct {
	peer   *peer
	subnet netip.Prefix // of the peer's pods
	kind   Kind
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
		to.kind, to.via = HostGW, gateway
		return to, nil
	}
	var why []error
	if f.vtep != nil && p.has(VXLAN) {
		vtep, err := f.vtepOf(p, subnet)
		if err == nil {
			to.kind, to.via, to.vtep = VXLAN, vtep.Endpoint, vtep
			return to, nil
		}
		why = append(why, err)
	}
	if f.udp.IsValid() && p.has(UDP) {
		err := p.noUDP
		if err == nil && p.socket.Is4() != f.udp.Is4() {
			err = fmt.Errorf("its udp socket is at %s, this node's at %s, of another address family", p.socket, f.udp)
		}
		if err == nil {
			to.kind, to.via = UDP, p.socket
			return to, nil
		}
		why = append(why, err)
	}
	if p.has(HostGW) && onLink() {
		to.kind, to.via = HostGW, gateway
		return to, nil
	}
	switch {
	case len(why) > 0:
	case f.plain || p.has(HostGW):
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
