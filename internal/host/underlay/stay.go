package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Stay returns was as it is now if it can go on being used: the link is there
// and up, and has the addresses that it had. Its MTU may be another one, and an
// address of a family that is needed may have come. That a fresh choice would
// fall on another interface does not count: a node is not to move for a default
// route that comes or goes.
//
// The error says what keeps the interface from being used; Choose may find
// another. As Choose, Stay looks at the network namespace of the calling thread.
func Stay(was Interface, o Options) (Interface, error) {
	c, err := newChooser(o)
	if err != nil {
		return Interface{}, err
	}
	l, err := readLink(was.Index)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return Interface{}, fmt.Errorf("interface %s: is gone", was.Name)
	case err != nil:
		return Interface{}, fmt.Errorf("interface %s: %w", was.Name, err)
	}
	switch {
	case l.name != was.Name: // it cannot be known whether that is the same network
		return Interface{}, fmt.Errorf("interface %s: is called %s now", was.Name, l.name)
	case !l.up:
		return Interface{}, fmt.Errorf("interface %s: is down; ip link set %[1]s up", was.Name)
	}
	for _, a := range was.addrs() {
		if !l.has(a) {
			return Interface{}, fmt.Errorf("interface %s: address %s is gone", was.Name, a)
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
