package underlay

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// maxOutside is the largest number of interfaces that Outside names, oldest first: each
// costs a comparison for packets from other interfaces.
const maxOutside = 32

// Outside names the interfaces on which packets of other hosts may arrive, with chosen
// first: all except those of containers and guests, which could forge the packets of other
// hosts. Those are links with a name of a container network or with an address in one of
// the networks of pods; veths without an address for hosts; and bridges between such
// links. A link that is not recognized as leading to other hosts is not named.
//
// Like Choose, Outside examines the network namespace of the calling thread.
func Outside(chosen string, pods []netip.Prefix) ([]string, error) {
	var links []netlink.Link
	var addrs []netlink.Addr
	err := uninterrupted(func() (err error) {
		links, addrs, err = dumpLinks()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the interfaces to other hosts: %w", err)
	}
	names := []string{chosen}
	for _, l := range links {
		name := l.Attrs().Name
		if name != chosen && len(names) < maxOutside && leadsOutside(l, links, addrs, pods) {
			names = append(names, name)
		}
	}
	return names, nil
}

func leadsOutside(l netlink.Link, links []netlink.Link, addrs []netlink.Addr, pods []netip.Prefix) bool {
	if containerLink(l.Attrs().Name) {
		return false
	}
	addressed := false
	for _, a := range linkOf(l, addrs).addrs {
		if slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(a.Addr) }) {
			return false
		}
		addressed = addressed || a.fault == ""
	}
	switch l.Type() {
	case "veth", "netkit":
		return addressed
	case "bridge":
		return slices.ContainsFunc(links, func(port netlink.Link) bool {
			return port.Attrs().MasterIndex == l.Attrs().Index && !guestPort(port)
		})
	}
	return true
}

// guestPort reports whether a port of a bridge is the host's end of a link to a container
// or a virtual machine.
func guestPort(l netlink.Link) bool {
	return slices.Contains([]string{"veth", "netkit", "tun", "tuntap"}, l.Type())
}
