package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/encap/vxlan"
	"github.com/twillnet/twill/internal/routes"
	"github.com/twillnet/twill/internal/underlay"
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

// hopTo decides how packets for subnet, one of l's, get there. data is the
// lease's backend data of the subnet's family. The error says why they cannot,
// and what would help.
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
		if to := publicOf(l, f.udp); to.IsValid() {
			h.way, h.via = UDP, to
			return h, nil
		}
		why = append(why, fmt.Errorf("it has no public address of the family of %s", f.udp))
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
		why = append(why, fmt.Errorf("its backend is %q, which only flannel has", l.BackendType))
	default:
		why = append(why, fmt.Errorf("its backends are %v, of which this node has none: start twilld with --backend=auto on either", ways))
	}
	return h, errors.Join(why...)
}

// vtepOf returns the VXLAN device of l that has the pods of subnet.
func (f family) vtepOf(l lease.Lease, subnet netip.Prefix) (vxlan.Peer, error) {
	data := l.BackendData
	if subnet.Addr().Is6() {
		data = l.BackendV6Data
	}
	d, err := f.vtepData(l, subnet, data)
	if err != nil {
		return vxlan.Peer{}, err
	}
	if d.VNI != f.vni {
		return vxlan.Peer{}, fmt.Errorf("its VXLAN is number %d, this node's %d", d.VNI, f.vni)
	}
	to := publicOf(l, f.vtep)
	if !to.IsValid() {
		return vxlan.Peer{}, fmt.Errorf("it has no public address of the family of %s", f.vtep)
	}
	return vxlan.Peer{Subnet: subnet, MAC: net.HardwareAddr(d.VtepMAC), Endpoint: to}, nil
}

// vtepData reads what l tells of its VXLAN device. Where it tells nothing, as in
// a file that people write, the address is the one that nodes of twill take by
// themselves.
func (f family) vtepData(l lease.Lease, subnet netip.Prefix, data json.RawMessage) (vxlan.Data, error) {
	if tellsVTEP(l) {
		return vxlan.ParseData(data)
	}
	planned, err := planVTEPs(underlay.Interface{IPv4: l.PublicIP, IPv6: l.PublicIPv6}, l.Subnet.IsValid(), l.IPv6Subnet.IsValid())
	if err != nil {
		return vxlan.Data{}, err
	}
	i := slices.IndexFunc(planned, func(v plannedVTEP) bool { return v.carries(subnet.Addr()) })
	mac := planned[i].ownMAC(l.PublicIP, l.PublicIPv6, f.vni)
	return vxlan.Data{VNI: f.vni, VtepMAC: vxlan.HardwareAddr(mac)}, nil
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
