package backend

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/routes"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// hop is how packets of one family get to a peer.
type hop struct {
	peer   lease.Lease
	subnet netip.Prefix // of the peer's pods
	via    netip.Addr   // the peer's address on the underlay
	way    Way
	vtep   vxlan.Peer // where way is VXLAN
}

// family is what deciding about the hops of one family takes. The zero value is
// that of a family that the node has no pods of.
type family struct {
	vni     int        // of vtep
	vtep    netip.Addr // the address of the VXLAN device on the underlay; invalid: there is none
	udp     netip.Addr // the address of the udp backend's socket; invalid: there is none
	gateway bool       // plain routes are possible: the underlay has addresses of this family
	direct  bool       // and preferred, to peers that answer in the same way
	plain   bool       // and the node knows nothing else
	// onLink says whether an address is reached without a gateway.
	onLink func(netip.Addr) bool
}

// publicOf returns the address of l of the family of like.
func publicOf(l lease.Lease, like netip.Addr) netip.Addr {
	if like.Is4() {
		return l.PublicIP
	}
	return l.PublicIPv6
}

// hopTo decides how packets for subnet, one of l's, get there. The error says why
// they cannot, and what would help.
func (f family) hopTo(l lease.Lease, subnet netip.Prefix) (hop, error) {
	h := hop{peer: l, subnet: subnet}
	ways := waysOf(l)
	gateway := publicOf(l, subnet.Addr())
	onLink := func() bool { return f.gateway && gateway.IsValid() && f.onLink(gateway) }
	if (f.plain || f.direct && answersPlain(l)) && onLink() {
		h.way, h.via = HostGW, gateway
		return h, nil
	}
	var why []error
	if f.vtep.IsValid() && knows(ways, VXLAN) {
		vtep, err := f.vtepOf(l, subnet)
		if err == nil {
			h.way, h.via, h.vtep = VXLAN, vtep.Endpoint, vtep
			return h, nil
		}
		why = append(why, err)
	}
	if f.udp.IsValid() && knows(ways, UDP) {
		to, err := f.udpOf(l)
		if err == nil {
			h.way, h.via = UDP, to
			return h, nil
		}
		why = append(why, err)
	}
	if knows(ways, HostGW) && onLink() {
		h.way, h.via = HostGW, gateway
		return h, nil
	}
	switch {
	case len(why) > 0:
	case f.plain || knows(ways, HostGW):
		why = append(why, errors.New("plain routes lead to peers on the same link only, and it is behind a gateway"))
	case len(ways) == 0:
		why = append(why, fmt.Errorf("its backend is %q, which this node has not", brief(l.BackendType)))
	default:
		why = append(why, fmt.Errorf("its backends are %v, of which this node has none: start twilld with --backend=auto on either", ways))
	}
	return h, errors.Join(why...)
}

// vtepOf returns the VXLAN device of l that has the pods of subnet.
func (f family) vtepOf(l lease.Lease, subnet netip.Prefix) (vxlan.Peer, error) {
	v, err := plannedFor(l, subnet)
	if err != nil {
		return vxlan.Peer{}, err
	}
	d, err := v.dataIn(l, f.vni)
	switch {
	case err != nil:
		return vxlan.Peer{}, err
	case d.VNI != f.vni:
		return vxlan.Peer{}, fmt.Errorf("its VXLAN is number %d, this node's %d", d.VNI, f.vni)
	case v.local.Is4() != f.vtep.Is4():
		return vxlan.Peer{}, fmt.Errorf("its VXLAN device for these pods is at %s, this node's at %s, of another address family", v.local, f.vtep)
	}
	return vxlan.Peer{Subnet: subnet, MAC: net.HardwareAddr(d.VtepMAC), Endpoint: v.local}, nil
}

// udpOf returns the address of l's udp socket, which is where [udp.LocalAddr]
// puts it.
func (f family) udpOf(l lease.Lease) (netip.Addr, error) {
	to, err := udp.LocalAddr(underlayOf(l))
	if err == nil && to.Is4() != f.udp.Is4() {
		err = fmt.Errorf("its udp socket is at %s, this node's at %s, of another address family", to, f.udp)
	}
	return to, err
}

// underlayOf is the interface of the node of l, as far as the others know it.
func underlayOf(l lease.Lease) underlay.Interface {
	return underlay.Interface{
		Name: "of the peer", IPv4: l.PublicIP, PublicIP: l.PublicIP, IPv6: l.PublicIPv6, PublicIPv6: l.PublicIPv6,
	}
}

// brief cuts what others have written to what fits into a message.
func brief(s string) string {
	const most = 40
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// route returns the route of h; dev is the number of the device that carries
// it.
func (h hop) route(dev int) routes.Route {
	r := routes.Route{Dst: h.subnet, Dev: dev}
	switch h.way {
	case VXLAN:
		r.Via, r.OnLink = h.subnet.Addr(), true
	case HostGW:
		r.Via = h.via
	}
	return r
}
