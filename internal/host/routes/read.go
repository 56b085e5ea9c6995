package routes

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

const (
	// ip6DefaultMetric is IP6_RT_PRIO_USER of linux/ipv6_route.h, the metric of
	// IPv6 routes that are made without one. That of IPv4 is 0.
	ip6DefaultMetric = 1024
	// attempts is how often routes are read that change meanwhile.
	attempts = 10
)

// foundRoute is a route of the kernel's in the place where this package's are:
// in the networks, in table main, with the default metric.
type foundRoute struct {
	Route
	protocol uint8
	// plain routes are unicast, with one next hop and nothing that Route does not
	// say. Of others only Dst is set.
	plain bool
}

// read returns the routes in the networks, by Dst. Where there are several, the
// first is in force; for IPv6 any of them may be.
func (t *Table) read() (map[netip.Prefix][]foundRoute, error) {
	found := make(map[netip.Prefix][]foundRoute)
	var done [2]bool
	for _, n := range t.cfg.Networks {
		i, family, name := 0, netlink.FAMILY_V4, "IPv4"
		if n.Addr().Is6() {
			i, family, name = 1, netlink.FAMILY_V6, "IPv6"
		}
		if done[i] {
			continue
		}
		done[i] = true
		routes, err := t.dump(family)
		if err != nil {
			return nil, fmt.Errorf("read the %s routes: %w", name, err)
		}
		for _, r := range routes {
			found[r.Dst] = append(found[r.Dst], r)
		}
	}
	return found, nil
}

// dump reads the routes of a family.
func (t *Table) dump(family int) (routes []foundRoute, err error) {
	for range attempts {
		routes = routes[:0]
		err = t.nl.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if f, ok := t.look(r); ok {
					routes = append(routes, f)
				}
				return true
			})
		switch {
		case errors.Is(err, unix.ENOENT): // the table is made with its first route
			return nil, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return routes, err
		}
	}
	return nil, err
}

// look says whether r is in the place of this package's routes.
func (t *Table) look(r netlink.Route) (f foundRoute, ok bool) {
	metric := 0
	if r.Family == netlink.FAMILY_V6 {
		metric = ip6DefaultMetric
	}
	if r.Dst == nil || r.Priority != metric || r.Tos != 0 {
		return f, false
	}
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	f.Dst = netip.PrefixFrom(addr, bits)
	f.protocol = uint8(r.Protocol)
	f.plain = r.Type == unix.RTN_UNICAST && r.LinkIndex > 0 && len(r.MultiPath) == 0 && r.Via == nil && r.Encap == nil
	if f.plain {
		f.Via, _ = netip.AddrFromSlice(r.Gw)
		f.Dev = r.LinkIndex
		f.OnLink = r.Flags&unix.RTNH_F_ONLINK != 0
	}
	return f, t.inside(f.Dst)
}

// del asks for the deletion of the route. protocol is that with which it was
// made.
func (r Route) del(protocol uint8) nlbatch.Request {
	b := r.batched()
	b.Protocol = protocol
	if r.Dst.Addr().Is6() {
		b.Metric = ip6DefaultMetric
	}
	return nlbatch.RouteDel(b)
}
