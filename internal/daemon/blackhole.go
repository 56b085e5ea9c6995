package daemon

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lastResort is the metric of our blackhole routes. Stock flannel's have none,
// and so go before the route that the kernel makes for a bridge of pods which
// gets its address later.
const lastResort = math.MaxInt32

// addBlackholes adds a blackhole route for each of the subnets, and removes those of
// the subnets that had one and are not among them.
func addBlackholes(subnets, had []netip.Prefix) error {
	for _, p := range had {
		if !slices.Contains(subnets, p) {
			if _, err := removeBlackholes(p); err != nil {
				return err
			}
		}
	}
	for _, p := range subnets {
		r := &netlink.Route{Dst: ipNet(p), Type: unix.RTN_BLACKHOLE, Priority: lastResort}
		if err := netlink.RouteAdd(r); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add route blackhole %s: %w", p, err)
		}
	}
	return nil
}

// removeBlackholes removes all blackhole routes to subnet, stock flannel's as
// well as ours, and returns how many there were.
func removeBlackholes(subnet netip.Prefix) (removed int, err error) {
	family := netlink.FAMILY_V4
	if subnet.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	filter := &netlink.Route{Dst: ipNet(subnet), Type: unix.RTN_BLACKHOLE}
	routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_DST|netlink.RT_FILTER_TYPE)
	if err != nil {
		return 0, fmt.Errorf("list blackhole routes: %w", err)
	}
	for _, r := range routes {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return removed, fmt.Errorf("delete route blackhole %s: %w", subnet, err)
		}
		removed++
	}
	return removed, nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
