package keep

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

const (
	// ip6DefaultMetric is IP6_RT_PRIO_USER of linux/ipv6_route.h, the default
	// metric of IPv6 routes. The default of IPv4 is 0.
	ip6DefaultMetric = 1024
	// lastMetric is the metric of blackholes. Those of stock flannel have no metric,
	// so they take precedence over the route that the kernel adds when the pods'
	// bridge gets its address later.
	lastMetric = math.MaxInt32
)

// routeKey identifies the place of a route in table main.
type routeKey struct {
	dst    netip.Prefix
	metric uint32 // 0: the kernel's default
}

// held is a route that, as far as known, is in the kernel, and that is wanted
// or was made by this or an earlier run.
type held struct {
	nlbatch.Route
	// foreign routes were made by other programs and happen to match a wanted
	// one. They are used, and left in place once they are no longer wanted.
	foreign bool
}

// foundRoute is a route in the kernel with a key that a Keeper's route may
// have.
type foundRoute struct {
	nlbatch.Route // Metric is 0 for the default
	protocol      uint8
	// plain routes are fully described by Route. For others only Dst and Metric
	// are set.
	plain bool
}

func (f foundRoute) key() routeKey { return routeKey{f.Dst, f.Metric} }

// del returns the request that deletes the route.
func (f foundRoute) del() nlbatch.Request {
	r := f.Route
	r.Protocol = f.protocol
	if r.Dst.Addr().Is6() && r.Metric == 0 {
		r.Metric = ip6DefaultMetric
	}
	return nlbatch.RouteDel(r)
}

// readRoutes returns the routes in the networks by their keys. If several share
// a key, the first one is in use; for IPv6 it may be any of them.
func (k *Keeper) readRoutes() (map[routeKey][]foundRoute, error) {
	found := make(map[routeKey][]foundRoute)
	for _, f := range []struct {
		number int
		name   string
		is     func(netip.Addr) bool
	}{
		{netlink.FAMILY_V4, "IPv4", netip.Addr.Is4},
		{netlink.FAMILY_V6, "IPv6", netip.Addr.Is6},
	} {
		if !slices.ContainsFunc(k.networks, func(n network) bool { return f.is(n.Addr()) }) {
			continue
		}
		all, err := dumpRoutes(k.nl, f.number)
		if err != nil {
			return nil, fmt.Errorf("read the %s routes: %w", f.name, err)
		}
		for _, r := range all {
			if k.inside(r.Dst) {
				found[r.key()] = append(found[r.key()], r)
			}
		}
	}
	return found, nil
}

// dumpRoutes reads the routes of a family that have a key that a Keeper's route
// may have.
func dumpRoutes(h *netlink.Handle, family int) (all []foundRoute, err error) {
	for range attempts {
		all = all[:0]
		err = h.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if f, ok := parseFound(r); ok {
					all = append(all, f)
				}
				return true
			})
		switch {
		case errors.Is(err, unix.ENOENT): // the table is created with its first route
			return nil, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return all, err
		}
	}
	return nil, err
}

// parseFound returns false for a route whose key no Keeper's route may have.
func parseFound(r netlink.Route) (f foundRoute, ok bool) {
	metric := 0
	if r.Family == netlink.FAMILY_V6 {
		metric = ip6DefaultMetric
	}
	if r.Dst == nil || r.Priority != metric && r.Priority != lastMetric || r.Tos != 0 {
		return f, false
	}
	if r.Priority == lastMetric {
		f.Metric = lastMetric
	}
	addr, _ := netip.AddrFromSlice(r.Dst.IP)
	bits, _ := r.Dst.Mask.Size()
	f.Dst = netip.PrefixFrom(addr, bits)
	f.protocol = uint8(r.Protocol)
	switch {
	case r.Type == unix.RTN_BLACKHOLE:
		f.Blackhole, f.plain = true, true
	case r.Type == unix.RTN_UNICAST && r.LinkIndex > 0 && len(r.MultiPath) == 0 && r.Via == nil && r.Encap == nil:
		f.Via, _ = netip.AddrFromSlice(r.Gw)
		f.Dev = r.LinkIndex
		f.OnLink = r.Flags&unix.RTNH_F_ONLINK != 0
		f.plain = true
	}
	return f, true
}

// compare updates have from the routes found in the kernel.
func (k *Keeper) compare(found map[routeKey][]foundRoute) {
	h := k.have.routes
	if h == nil {
		h = k.earlier(found)
		k.have.routes = h
	}
	for key, r := range h {
		if !slices.ContainsFunc(found[key], func(f foundRoute) bool {
			return f.plain && f.Route == r.Route && (f.protocol != unix.RTPROT_BOOT) == r.foreign
		}) {
			delete(h, key)
		}
	}
	for key, w := range k.want.routes {
		for _, f := range found[key] {
			if f.plain && f.Route == w.Route {
				h[key] = held{w.Route, f.protocol != unix.RTPROT_BOOT}
				break
			}
		}
	}
}

// earlier returns the routes that earlier runs made, of twill or of stock
// flannel.
func (k *Keeper) earlier(found map[routeKey][]foundRoute) map[routeKey]held {
	ours := make(map[routeKey]held)
	for key, all := range found {
		if i := slices.IndexFunc(all, k.isEarlier); i >= 0 {
			ours[key] = held{Route: all[i].Route}
		}
	}
	return ours
}

func (k *Keeper) isEarlier(f foundRoute) bool {
	switch {
	case !f.plain || f.protocol != unix.RTPROT_BOOT:
		return false
	case f.Blackhole:
		return f.Metric == lastMetric || k.claimed[Route{Dst: f.Dst, Blackhole: true}]
	case f.OnLink && f.Via == f.Dst.Addr() && k.device(f.Dev) != nil:
		return true
	}
	if d := k.device(f.Dev); d != nil && d.VXLAN == nil && !f.Via.IsValid() {
		return true
	}
	r := k.named(f.Route)
	return k.claimed[r] || k.record.has(r)
}

// named returns the route with the name of its device.
func (k *Keeper) named(r nlbatch.Route) Route {
	if r.Blackhole {
		return Route{Dst: r.Dst, Blackhole: true}
	}
	return Route{Dst: r.Dst, Via: r.Via, Dev: k.link(r.Dev).name, OnLink: r.OnLink}
}
