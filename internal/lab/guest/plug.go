package guest

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// podSideMTU is the MTU of the card that leads to the pods. It is large because the
// limits under test are the pods' own MTU and that of the path beyond the guest.
const podSideMTU = 9000

// nic is one of a guest's network cards: the descriptor of a tap that is a port of
// a bridge in the host's namespace.
type nic struct {
	tap *os.File
	mtu int
}

// plug turns the host's namespace into the switches of a guest: that of the underlay
// and that of the pods, in this order. Everything it creates is removed with the
// namespace, and the taps with their last descriptor.
func plug(h *netlab.Host) ([]nic, error) {
	nl := h.NS.Netlink()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "underlay"
	if err := nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, fmt.Errorf("%s: add bridge: %w", h.NS, err)
	}
	underlay, err := nl.LinkByName(attrs.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: find bridge: %w", h.NS, err)
	}
	eth0, err := nl.LinkByName(netlab.UnderlayLink)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", h.NS, netlab.UnderlayLink, err)
	}
	pods, err := nl.LinkByName("cni0")
	if err != nil {
		return nil, fmt.Errorf("%s: find cni0: %w", h.NS, err)
	}
	if err := errors.Join(nl.LinkSetMaster(eth0, underlay), nl.LinkSetUp(underlay)); err != nil {
		return nil, fmt.Errorf("%s: put %s into the bridge: %w", h.NS, netlab.UnderlayLink, err)
	}
	// The addresses belong to the guest from now on.
	for _, l := range []netlink.Link{eth0, pods} {
		addrs, err := nl.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("%s: addresses of %s: %w", h.NS, l.Attrs().Name, err)
		}
		for _, a := range addrs {
			if err := nl.AddrDel(l, &a); err != nil {
				return nil, fmt.Errorf("%s: delete %s: %w", h.NS, a.IPNet, err)
			}
		}
	}
	var nics []nic
	for i, side := range []struct {
		bridge netlink.Link
		mtu    int
	}{{underlay, eth0.Attrs().MTU}, {pods, podSideMTU}} {
		tap, err := addTap(h.NS, fmt.Sprintf("guest%d", i), side.bridge, side.mtu)
		if err != nil {
			unplug(nics)
			return nil, err
		}
		nics = append(nics, nic{tap, side.mtu})
	}
	return nics, nil
}

// unplug closes the taps.
func unplug(nics []nic) {
	for _, n := range nics {
		n.tap.Close()
	}
}

// addTap creates a tap in the form that qemu expects, as a port of a bridge.
func addTap(ns *netlab.Namespace, name string, bridge netlink.Link, mtu int) (*os.File, error) {
	tap := &netlink.Tuntap{
		LinkAttrs: netlink.NewLinkAttrs(), Mode: netlink.TUNTAP_MODE_TAP, NonPersist: true, Queues: 1,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, // super-packets, as virtio has them
	}
	tap.Name = name
	// The device appears in the namespace of the thread.
	if err := ns.Do(func() error { return netlink.LinkAdd(tap) }); err != nil {
		return nil, fmt.Errorf("%s: add tap %s: %w", ns, name, err)
	}
	nl := ns.Netlink()
	l, err := nl.LinkByName(name)
	if err == nil {
		err = errors.Join(nl.LinkSetMTU(l, mtu), nl.LinkSetMaster(l, bridge), nl.LinkSetUp(l))
	}
	if err != nil {
		tap.Fds[0].Close()
		return nil, fmt.Errorf("%s: put tap %s into %s: %w", ns, name, bridge.Attrs().Name, err)
	}
	return tap.Fds[0], nil
}
