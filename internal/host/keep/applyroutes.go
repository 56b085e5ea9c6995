package keep

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// passes bounds how often the kernel's routes are read again because several
// share a key, before that is treated as a failure.
const passes = 3

// applyRoutes makes the kernel have the wanted routes, and removes our routes
// that are not wanted.
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
		b.o.failures, b.o.due = failures, due // keep only those of the last pass
		look = false
		b.putRoutes(found, &look)
		b.dropRoutes()
		if !look {
			break
		}
	}
	return nil
}

// putRoutes writes the wanted routes. It sets again if the result is known only after
// the routes have been read again.
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

// putRoute writes one route, in place of the known others.
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
		// No route is known to exist. If there is one, it may be one that must
		// not be replaced, which the next read will show.
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
			*again = true // for IPv4 it may also exist behind another one
			b.o.fail(key, b.explain(w.Route, err))
			return
		case b.restoring && errors.Is(err, unix.ENETDOWN) && b.device(w.Dev) != nil:
			// Another program has just set the device down. The notification triggers
			// another look, which sets it up again.
			b.rested |= routes
			return
		case errors.Is(err, nlbatch.ErrUnanswered):
			b.dirty = everything
			delete(b.have.routes, key) // it is not known which route exists
		}
		delete(b.paces, key) // the kernel rejected the route; no other program removed it
		b.o.fail(key, b.explain(w.Route, err))
	}})
}

// obstacle returns an error if w must not replace the others.
func (b *batch) obstacle(w target, others []foundRoute) error {
	for _, f := range others {
		if f.protocol == unix.RTPROT_KERNEL {
			// The kernel made it for the address of an interface. Replacing it
			// would cut off the hosts on that interface, and the kernel would
			// not restore it.
			return fmt.Errorf("set route %s: interface %s has an address in that subnet: %s", b.words(w.Route), b.link(f.Dev).name, w.remedy())
		}
	}
	if w.yield {
		return fmt.Errorf("set route %s: another route to this destination exists, perhaps of another flanneld: list it with 'ip route show %s' and delete it", b.words(w.Route), w.Dst)
	}
	return nil
}

// remedy suggests what to do about an interface that has the subnet of the
// route.
func (w target) remedy() string {
	if w.yield {
		return "give it an address in this node's subnet (FLANNEL_SUBNET in subnet.env)"
	}
	return "restart the pods on it, so that they get addresses of this node's lease"
}

// clearRoutes deletes other routes with the same key as the correct one.
func (b *batch) clearRoutes(key routeKey, w target, others []foundRoute, again *bool) {
	cleared := false
	for _, f := range others {
		if f.plain && f.Route != w.Route {
			// The next read shows whether it is gone.
			b.add(step{key: key, object: f.Route, request: f.del(), after: func(error) {}})
			cleared = true
		}
	}
	if cleared {
		*again = true
		// The kernel deletes the first match. If the other route has no
		// gateway, that may have been ours, so it is written again.
		b.add(step{key: key, object: w.Route, request: nlbatch.RouteReplace(w.Route), after: func(error) {}})
		b.written(key, w.Route)
	}
}

// dropRoutes deletes our routes that are not wanted.
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

// retryOnLink retries the routes that the kernel rejected because of existing
// routes to their gateways, and replaces their errors.
//
// For IPv6 the kernel rejects a gateway, onlink or not, that is currently
// reached through another device (ip6_route_check_nh_onlink in
// net/ipv6/route.c). The gateway of a tunnel route is the first address of the
// peer's own subnet, so while the subnet, or the whole network, is routed
// elsewhere, it could not be moved into the tunnel. A temporary route to the
// gateway alone solves this. It leads through the device of the gateway, so it
// does no harm in the meantime. All three requests go in one datagram.
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
			Metric: 1, Protocol: unix.RTPROT_BOOT, // takes precedence over all others, with a key of its own
		}
		refused = append(refused, i)
		requests = append(requests, nlbatch.RouteAdd(gateway), s.request, nlbatch.RouteDel(gateway))
	}
	if len(refused) == 0 {
		return
	}
	again, _ := b.send(requests)
	for j, i := range refused {
		errs[i] = again[3*j+1]
	}
}

// explain returns err with the reason why the route could not be installed and
// a remedy. The kernel's errno is not enough: for IPv4, a gateway through a
// missing device yields ENETUNREACH.
func (k *Keeper) explain(r nlbatch.Route, err error) error {
	dev := k.link(r.Dev)
	remedy := ""
	switch {
	case r.Blackhole:
	case dev.gone:
		remedy = "; the device is gone, the route will be set through the device that replaces it"
	case dev.down:
		remedy = fmt.Sprintf("; %[1]s is down, the route will be set when it is up: ip link set %[1]s up", dev.name)
	case (errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH)) && r.Via.IsValid():
		remedy = fmt.Sprintf("; the peer's address %[2]s is in no subnet of %[1]s: give both nodes addresses in the same subnet, or use a backend with a tunnel (vxlan, udp)", dev.name, r.Via)
	case errors.Is(err, unix.EACCES) && r.Dst.Addr().Is6():
		remedy = fmt.Sprintf("; IPv6 is disabled on this device: set net.ipv6.conf.%s.disable_ipv6=0", dev.name)
	}
	if errors.Is(err, unix.EPERM) {
		remedy = "; run as root, or with CAP_NET_ADMIN"
	}
	return fmt.Errorf("set route %s: %w%s", k.words(r), err, remedy)
}
