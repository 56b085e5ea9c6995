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
	// ip6DefaultMetric is IP6_RT_PRIO_USER of linux/ipv6_route.h, the metric of
	// IPv6 routes that are made without one. That of IPv4 is 0.
	ip6DefaultMetric = 1024
	// lastMetric is that of blackholes. Stock flannel's have none, and so go
	// before the route that the kernel makes for a bridge of pods which gets its
	// address later.
	lastMetric = math.MaxInt32
)

// routeKey is the place of a route in table main.
type routeKey struct {
	dst    netip.Prefix
	metric uint32 // 0: the kernel's default
}

// target is a route with the number of its device.
type target struct {
	nlbatch.Route
	yield bool
	err   error // why it cannot be had
}

// held is a route that is in the kernel as far as is known, and that is wanted,
// or was made by this or an earlier run.
type held struct {
	nlbatch.Route
	// foreign routes are right by chance. They are used, and left when they are
	// not wanted any more.
	foreign bool
}

// wanted is a State with the numbers of devices.
type wanted struct {
	fdb    map[fdbKey]netip.Addr
	neighs map[neighKey]MAC
	routes map[routeKey]target
	devs   map[int]bool // those of routes
	twice  []failure    // routes for places that are taken
}

// compile looks up the devices of s.
func (k *Keeper) compile(s State) *wanted {
	w := &wanted{
		fdb: make(map[fdbKey]netip.Addr, len(s.FDB)), neighs: make(map[neighKey]MAC, len(s.Neighs)),
		routes: make(map[routeKey]target, len(s.Routes)), devs: make(map[int]bool),
	}
	index := make(map[string]int)
	dev := func(name string) int {
		i, ok := index[name]
		if !ok {
			if d, kept := k.devices[name]; kept {
				i = d.index
			} else if link, err := k.nl.LinkByName(name); err == nil {
				i = link.Attrs().Index
			}
			index[name] = i
		}
		return i
	}
	for _, f := range s.FDB {
		w.fdb[fdbKey{dev(f.Dev), f.MAC}] = f.Dst
	}
	for _, n := range s.Neighs {
		w.neighs[neighKey{dev(n.Dev), n.IP}] = n.MAC
	}
	for _, r := range s.Routes {
		t := target{Route: nlbatch.Route{Dst: r.Dst.Masked(), Via: r.Via.WithZone(""), OnLink: r.OnLink}, yield: r.Yield}
		if r.Blackhole {
			t.Route = nlbatch.Route{Dst: r.Dst.Masked(), Blackhole: true, Metric: lastMetric}
		} else if t.Dev = dev(r.Dev); t.Dev == 0 {
			t.err = fmt.Errorf("set route %s: interface %s is gone", r, r.Dev)
		}
		key := routeKey{t.Dst, t.Metric}
		if other, twice := w.routes[key]; twice {
			if other.Route != t.Route {
				w.twice = append(w.twice, failure{t, fmt.Errorf("set route %s: another route to it is wanted: %s", r, k.words(other.Route))})
			}
			continue
		}
		w.routes[key] = t
		w.devs[t.Dev] = true
	}
	return w
}

// foundRoute is a route of the kernel's in a place where those of a Keeper are.
type foundRoute struct {
	nlbatch.Route // Metric is 0 for the default
	protocol      uint8
	// plain routes are as Route says. Of others only Dst and Metric are set.
	plain bool
}

func (f foundRoute) key() routeKey { return routeKey{f.Dst, f.Metric} }

// readRoutes returns the routes in the networks by their places. Where there are
// several in one, the first is in force; for IPv6 any of them may be.
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

// dumpRoutes reads the routes of a family that may be a Keeper's by their places.
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
		case errors.Is(err, unix.ENOENT): // the table is made with its first route
			return nil, nil
		case !errors.Is(err, netlink.ErrDumpInterrupted):
			return all, err
		}
	}
	return nil, err
}

// parseFound reports false of a route in no place of a Keeper's.
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

// compare brings have up to date with what was found.
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

// earlier returns the routes that earlier runs have made, of twill or of stock
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
		return f.Metric == lastMetric
	case f.OnLink && f.Via == f.Dst.Addr() && k.device(f.Dev) != nil:
		return true
	}
	r := Route{Dst: f.Dst, Via: f.Via, Dev: k.link(f.Dev).name, OnLink: f.OnLink}
	return k.claimed[r] || k.record.has(r)
}

// passes bounds how often the kernel is looked at again where there are several
// routes in one place, before what there is is taken for a fault.
const passes = 3

// applyRoutes makes the kernel have the routes that are wanted, and removes those
// of ours that are not.
func (b *batch) applyRoutes() error {
	look := b.dirty&routes != 0
	b.o.failures = append(b.o.failures, b.want.twice...)
	failures, due := b.o.failures, b.o.due
	for range passes {
		var found map[routeKey][]foundRoute
		if look {
			var err error
			if found, err = b.readRoutes(); err != nil {
				return err
			}
			b.compare(found)
			b.dirty &^= routes
		}
		b.o.failures, b.o.due = failures, due // of those of the last pass
		look = false
		b.putRoutes(found, &look)
		b.dropRoutes()
		if !look {
			break
		}
	}
	return nil
}

// putRoutes writes the routes that are wanted. again is set if it takes another
// look to know what has come of it.
func (b *batch) putRoutes(found map[routeKey][]foundRoute, again *bool) {
	for key, w := range b.want.routes {
		right := b.have.routes[key].Route == w.Route
		others := found[key]
		switch {
		case right && len(others) <= 1:
		case w.err != nil:
			b.o.fail(key, w.err)
		case !b.ready(w.Route) || b.rests(key):
		case !right:
			b.putRoute(key, w, others, again)
		default:
			b.clearRoutes(key, w, others, again)
		}
	}
	b.do()
}

// putRoute writes one route, in the place of the others that are known.
func (b *batch) putRoute(key routeKey, w target, others []foundRoute, again *bool) {
	if len(others) > 0 {
		if err := b.obstacle(w, others); err != nil {
			b.o.fail(key, err)
			return
		}
	}
	request := nlbatch.RouteReplace(w.Route)
	_, known := b.have.routes[key]
	if fresh := !known && len(others) == 0; fresh || w.yield {
		// Nothing is known to be there: if something is, it may be one that is
		// not to be replaced, of which a look tells.
		request = nlbatch.RouteAdd(w.Route)
	}
	*again = *again || len(others) > 1
	b.add(step{key: key, op: "set route", object: w.Route, request: request, after: func(err error) {
		switch {
		case err == nil:
			b.have.routes[key] = held{Route: w.Route}
			b.written(key, w.Route)
			return
		case errors.Is(err, unix.EEXIST):
			*again = true // for IPv4 it may also be there behind another
			b.o.fail(key, b.explain(w.Route, err))
			return
		case errors.Is(err, nlbatch.ErrUnanswered):
			b.dirty = everything
			delete(b.have.routes, key) // it is not known what is there
		}
		delete(b.paces, key) // the kernel refused it, no other program took it
		b.o.fail(key, b.explain(w.Route, err))
	}})
}

// obstacle returns why w cannot be put in the place of the others.
func (b *batch) obstacle(w target, others []foundRoute) error {
	for _, f := range others {
		if f.protocol == unix.RTPROT_KERNEL {
			// The kernel has made it for the address of an interface. To put another
			// in its place would cut off whoever is there, and the kernel would not
			// make it again.
			return fmt.Errorf("set route %s: interface %s has that subnet itself: %s", b.words(w.Route), b.link(f.Dev).name, w.remedy())
		}
	}
	if w.yield {
		return fmt.Errorf("set route %s: another route to it exists, perhaps of another flanneld: look with 'ip route show %s' and delete it", b.words(w.Route), w.Dst)
	}
	return nil
}

// remedy says what to do about a bridge in the place of the route.
func (w target) remedy() string {
	if w.yield {
		return "give it an address of this node's subnet instead, as subnet.env has it"
	}
	return "restart the pods on it, with addresses of this node's lease"
}

// clearRoutes deletes what stands beside the right route.
func (b *batch) clearRoutes(key routeKey, w target, others []foundRoute, again *bool) {
	cleared := false
	for _, f := range others {
		if f.plain && f.Route != w.Route {
			// Whether it is gone shows the next look.
			b.add(step{key: key, object: f.Route, request: f.del(), after: func(error) {}})
			cleared = true
		}
	}
	if cleared {
		*again = true
		// The kernel deletes the first that matches. If the other has no gateway,
		// that may have been ours.
		b.add(step{key: key, object: w.Route, request: nlbatch.RouteReplace(w.Route), after: func(error) {}})
		b.written(key, w.Route)
	}
}

// dropRoutes deletes the routes of ours that are not wanted.
func (b *batch) dropRoutes() {
	for key, h := range b.have.routes {
		_, wanted := b.want.routes[key]
		switch {
		case wanted:
		case h.foreign:
			delete(b.have.routes, key)
		default:
			f := foundRoute{Route: h.Route, protocol: unix.RTPROT_BOOT}
			b.add(step{key: key, op: "delete route", object: h.Route, request: f.del(), gone: unix.ESRCH, done: func() { delete(b.have.routes, key) }})
		}
	}
	b.do()
}

// del asks for the deletion of the route.
func (f foundRoute) del() nlbatch.Request {
	r := f.Route
	r.Protocol = f.protocol
	if r.Dst.Addr().Is6() && r.Metric == 0 {
		r.Metric = ip6DefaultMetric
	}
	return nlbatch.RouteDel(r)
}

// retryOnLink tries the routes again that the kernel refused for the routes that
// there are to their gateway, and replaces their errors.
//
// For IPv6 the kernel refuses a gateway, onlink or not, to which another device
// leads at that moment (ip6_route_check_nh_onlink in net/ipv6/route.c). That of a
// tunnel is the first address of the peer's own subnet: as long as the subnet, or
// the whole network, is routed elsewhere, it could not be moved into the tunnel.
// So a route to the gateway alone stands there until the other is put in. It
// leads where the gateway is, so it does no harm meanwhile; all three requests go
// in one datagram.
func (b *batch) retryOnLink(steps []step, errs []error) {
	var refused []int
	var requests []nlbatch.Request
	for i, s := range steps {
		r, ok := s.object.(nlbatch.Route)
		if !ok || s.after == nil || !r.OnLink || !r.Via.Is6() || !errors.Is(errs[i], unix.EINVAL) {
			continue
		}
		gateway := nlbatch.Route{
			Dst: single(r.Via), Dev: r.Dev,
			Metric: 1, Protocol: unix.RTPROT_BOOT, // before all others, in a place of its own
		}
		refused = append(refused, i)
		requests = append(requests, nlbatch.RouteAdd(gateway), s.request, nlbatch.RouteDel(gateway))
	}
	if len(refused) == 0 {
		return
	}
	again, _ := b.conn.Do(requests)
	for j, i := range refused {
		errs[i] = again[3*j+1]
	}
}

// explain says why a route could not be put in, and what to do about it. The
// kernel's errno alone does not: for IPv4 a gateway through a device that is gone
// is ENETUNREACH.
func (k *Keeper) explain(r nlbatch.Route, err error) error {
	dev := k.link(r.Dev)
	remedy := ""
	switch {
	case r.Blackhole:
	case dev.gone:
		remedy = "; the device is gone, the route follows when another is wanted"
	case dev.down:
		remedy = fmt.Sprintf("; %[1]s is down, the route follows when it is up: ip link set %[1]s up", dev.name)
	case (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)) && r.Via.IsValid():
		remedy = fmt.Sprintf("; no network of %s has the peer's address %s in it: give both nodes addresses of one network, or reach the peer through a tunnel", dev.name, r.Via)
	case errors.Is(err, unix.EACCES) && r.Dst.Addr().Is6():
		remedy = fmt.Sprintf("; IPv6 is turned off here: set net.ipv6.conf.%s.disable_ipv6=0", dev.name)
	}
	if errors.Is(err, unix.EPERM) {
		remedy = "; run as root, or with CAP_NET_ADMIN"
	}
	return fmt.Errorf("set route %s: %w%s", k.words(r), err, remedy)
}
