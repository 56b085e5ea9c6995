package routes

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// overcome tries the puts again that the kernel refused for the routes that there
// are to their gateway, and replaces their errors.
//
// For IPv6 the kernel refuses a gateway, onlink or not, to which another device
// leads at that moment (ip6_route_check_nh_onlink in net/ipv6/route.c). That of a
// tunnel is the first address of the peer's own subnet: as long as the subnet, or
// the whole network, is routed elsewhere, it could not be moved into the tunnel.
// So a route to the gateway alone stands there until the other is put in. It
// leads where the gateway is, so it does no harm meanwhile; all three requests go
// in one datagram.
func (t *Table) overcome(steps []step, errs []error) {
	var refused []int
	var requests []nlbatch.Request
	for i, s := range steps {
		if s.kind != stepPut || !s.route.OnLink || !s.route.Via.Is6() || !errors.Is(errs[i], unix.EINVAL) {
			continue
		}
		gateway := nlbatch.Route{
			Dst: netip.PrefixFrom(s.route.Via, s.route.Via.BitLen()), Dev: s.route.Dev,
			Metric: 1, Protocol: unix.RTPROT_BOOT, // before all others, and nobody else's
		}
		refused = append(refused, i)
		requests = append(requests, nlbatch.RouteAdd(gateway), s.request, nlbatch.RouteDel(gateway))
	}
	if len(refused) == 0 {
		return
	}
	again, _ := t.conn.Do(requests)
	for j, i := range refused {
		errs[i] = again[3*j+1]
	}
}
