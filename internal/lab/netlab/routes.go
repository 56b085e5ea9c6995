package netlab

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vxlanOverhead is what VXLAN over IPv4 puts before the inner IP packet: IPv4
// 20, UDP 8, VXLAN 8, inner Ethernet 14.
const vxlanOverhead = 50

// The kernel's VXLAN as stock flannel sets it up (pkg/backend/vxlan).
const (
	vxlanLink = "flannel.1"
	vxlanVNI  = 1
	vxlanPort = 8472
)

// AddVXLAN connects the pod networks of all hosts through the kernel's VXLAN,
// set up as flannel's vxlan backend does, and sets the pods' MTU.
func (t *Topology) AddVXLAN() error {
	for _, h := range t.Hosts {
		if err := h.addVTEP(t.opts.MTU - vxlanOverhead); err != nil {
			return errors.Join(err, t.DelVXLAN())
		}
	}
	for _, h := range t.Hosts {
		for _, peer := range t.Hosts {
			if peer == h {
				continue
			}
			if err := h.addVXLANPeer(peer); err != nil {
				return errors.Join(err, t.DelVXLAN())
			}
		}
	}
	return t.SetPodMTU(t.opts.MTU - vxlanOverhead)
}

// DelVXLAN undoes AddVXLAN, except for the pods' MTU.
func (t *Topology) DelVXLAN() error {
	var errs []error
	for _, h := range t.Hosts {
		link, err := h.NS.nl.LinkByName(vxlanLink)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err == nil {
			err = h.NS.nl.LinkDel(link) // its routes and entries are removed with it
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: delete %s: %w", h.NS, vxlanLink, err))
		}
	}
	return errors.Join(errs...)
}

// vtepMAC returns the MAC address of the host's VTEP. It is fixed, so that peers need not
// query it.
func (h *Host) vtepMAC() net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x74, 0x77, 0x00, 0x00, h.Addr.As4()[3]}
}

func (h *Host) addVTEP(mtu int) error {
	dev, err := h.NS.nl.LinkByName(UnderlayLink)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", h.NS, UnderlayLink, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = vxlanLink, mtu, h.vtepMAC()
	err = h.NS.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: vxlanVNI, VtepDevIndex: dev.Attrs().Index, SrcAddr: h.Addr.AsSlice(),
		Port: vxlanPort, Learning: false, UDPCSum: true,
	})
	if err != nil {
		return fmt.Errorf("%s: add %s: %w", h.NS, vxlanLink, err)
	}
	if err := h.NS.addAddrs(vxlanLink, single(h.Subnet), single(h.Subnet6)); err != nil {
		return err
	}
	return h.NS.linkUp(vxlanLink)
}

// addVXLANPeer makes the pods of peer reachable from h: neighbour, FDB entry and
// route, in flannel's order.
func (h *Host) addVXLANPeer(peer *Host) error {
	link, err := h.NS.nl.LinkByName(vxlanLink)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", h.NS, vxlanLink, err)
	}
	index := link.Attrs().Index
	err = h.NS.nl.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: peer.Addr.AsSlice(), HardwareAddr: peer.vtepMAC(),
	})
	if err != nil {
		return fmt.Errorf("%s: add FDB entry for %s: %w", h.NS, peer.Addr, err)
	}
	for _, subnet := range peer.subnets() {
		// The neighbour is the peer's address on its VXLAN device, .0.
		gw := subnet.Addr()
		err = h.NS.nl.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST,
			IP: gw.AsSlice(), HardwareAddr: peer.vtepMAC(),
		})
		if err != nil {
			return fmt.Errorf("%s: add neighbour %s: %w", h.NS, gw, err)
		}
		err = h.NS.nl.RouteReplace(&netlink.Route{
			LinkIndex: index, Dst: IPNet(subnet), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		})
		if err != nil {
			return fmt.Errorf("%s: add route %s via %s: %w", h.NS, subnet, gw, err)
		}
	}
	return nil
}

// AddHostGW connects the pod networks of all hosts by plain routes, as
// flannel's host-gw backend does, and sets the pods' MTU.
func (t *Topology) AddHostGW() error {
	err := t.hostGW((*netlink.Handle).RouteReplace)
	if err != nil {
		return errors.Join(fmt.Errorf("add %w", err), t.DelHostGW())
	}
	return t.SetPodMTU(t.opts.MTU)
}

// DelHostGW undoes AddHostGW, except for the pods' MTU.
func (t *Topology) DelHostGW() error {
	err := t.hostGW(func(nl *netlink.Handle, r *netlink.Route) error {
		if err := nl.RouteDel(r); err != unix.ESRCH {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete %w", err)
	}
	return nil
}

// hostGW applies do to each host's route to each other host's pods.
func (t *Topology) hostGW(do func(*netlink.Handle, *netlink.Route) error) error {
	for _, h := range t.Hosts {
		dev, err := h.NS.nl.LinkByName(UnderlayLink)
		if err != nil {
			return fmt.Errorf("host-gw route on %s: find %s: %w", h.NS, UnderlayLink, err)
		}
		for _, peer := range t.Hosts {
			if peer == h {
				continue
			}
			for i, subnet := range peer.subnets() {
				via := peer.underlay()[i]
				err := do(h.NS.nl, &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: IPNet(subnet), Gw: via.AsSlice()})
				if err != nil {
					return fmt.Errorf("host-gw route on %s: %s via %s: %w", h.NS, subnet, via, err)
				}
			}
		}
	}
	return nil
}
