package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nameOf is what all devices of flannel's vxlan backend are called, and that of a
// Probe which was killed.
var nameOf = regexp.MustCompile(`^(flannel(-v6)?\.[1-9][0-9]*|` + probeName + `)$`)

// Left returns the names of the devices that runs of twill or stock flannel have
// left on this host, whatever their VNI: of this backend's names and kind.
func Left() ([]string, error) {
	links, err := left()
	var names []string
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	return names, err
}

// LeftOf returns those that are of the cluster whose pods have addresses in the
// networks: a device has the first of its node's.
func LeftOf(networks []netip.Prefix) ([]string, error) {
	links, err := left()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range links {
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return names, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		if slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			ip, _ := netip.AddrFromSlice(a.IP)
			return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(ip.Unmap()) })
		}) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

func left() (links []netlink.Link, err error) {
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		if _, ok := l.(*netlink.Vxlan); ok && nameOf.MatchString(l.Attrs().Name) {
			links = append(links, l)
		}
	}
	return links, nil
}

// Remove deletes the device name, with which its addresses, its entries and the
// routes over it go. A device of another kind is somebody else's and stays; one
// that is not there is no error.
func Remove(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	if _, ok := link.(*netlink.Vxlan); !ok {
		return nil
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}
