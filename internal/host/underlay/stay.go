package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Stay returns the current state of was if it can still be used: the link
// exists and is up, and has the addresses that it had. Its MTU may have
// changed, and an address of a required family may have been added. It does not
// matter whether Choose would now pick another interface: a node must not move
// because a default route appears or disappears.
//
// The error is the reason why the interface can no longer be used; Choose may
// find another. Like Choose, Stay examines the network namespace of the calling
// thread.
func Stay(was Interface, o Options) (Interface, error) {
	c, err := newChooser(o)
	if err != nil {
		return Interface{}, err
	}
	l, err := readLink(was.Index)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return Interface{}, fmt.Errorf("interface %s is gone", was.Name)
	case err != nil:
		return Interface{}, fmt.Errorf("interface %s: %w", was.Name, err)
	}
	switch {
	case l.name != was.Name: // it cannot be determined whether it is still on the same network
		return Interface{}, fmt.Errorf("interface %s was renamed to %s", was.Name, l.name)
	case !l.up:
		return Interface{}, fmt.Errorf("interface %s is down; set it up with 'ip link set %[1]s up'", was.Name)
	}
	for _, a := range was.addrs() {
		if !l.has(a) {
			return Interface{}, fmt.Errorf("interface %s no longer has the address %s", was.Name, a)
		}
	}
	now := was
	now.MTU = l.mtu
	if c.needIPv4 && !now.IPv4.IsValid() {
		now.IPv4 = l.pick(netip.Addr.Is4, []netip.Addr{c.publicIP})
		now.PublicIP = cmp.Or(c.publicIP, now.IPv4)
	}
	if c.needIPv6 && !now.IPv6.IsValid() {
		now.IPv6 = l.pick(netip.Addr.Is6, []netip.Addr{c.publicIPv6})
		now.PublicIPv6 = cmp.Or(c.publicIPv6, now.IPv6)
	}
	return now, nil
}
