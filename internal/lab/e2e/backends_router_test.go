package e2e

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// behindRouter moves the last of hosts into another subnet: its eth0 then leads
// to the router, which forwards between the two.
func behindRouter(t testing.TB, hosts []*netlab.Host, router *netlab.Host) {
	t.Helper()
	h := hosts[len(hosts)-1]
	nl := h.NS.Netlink()
	old, err := nl.LinkByName(netlab.UnderlayLink)
	testkit.Must(t, err)
	testkit.Must(t, nl.LinkDel(old))
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "eth1", old.Attrs().MTU
	testkit.Must(t, router.NS.Netlink().LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: netlab.UnderlayLink, PeerNamespace: netlink.NsFd(h.NS.FD()), PeerMTU: uint32(old.Attrs().MTU),
	}))
	gw, gw6 := netip.MustParsePrefix("172.31.10.1/24"), netip.MustParsePrefix("fd00:172:31:10::1/64")
	h.Addr, h.Addr6 = netip.MustParseAddr("172.31.10.13"), netip.MustParseAddr("fd00:172:31:10::13")
	for _, end := range []struct {
		ns    *netlab.Namespace
		link  string
		addrs []netip.Prefix
	}{
		{router.NS, "eth1", []netip.Prefix{gw, gw6}},
		{h.NS, netlab.UnderlayLink, []netip.Prefix{netip.PrefixFrom(h.Addr, 24), netip.PrefixFrom(h.Addr6, 64)}},
	} {
		link, err := end.ns.Netlink().LinkByName(end.link)
		testkit.Must(t, err)
		testkit.Must(t, end.ns.Netlink().LinkSetUp(link))
		for _, a := range end.addrs {
			addAddr(t, end.ns, end.link, a)
		}
	}
	for _, r := range []struct {
		h       *netlab.Host
		dst     netip.Prefix
		gateway netip.Addr
	}{
		{h, netip.MustParsePrefix("172.31.9.0/24"), gw.Addr()},
		{h, netip.MustParsePrefix("fd00:172:31:9::/64"), gw6.Addr()},
	} {
		addRoute(t, r.h.NS, r.dst, r.gateway)
	}
	for _, other := range hosts[:len(hosts)-1] {
		addRoute(t, other.NS, gw.Masked(), router.Addr)
		addRoute(t, other.NS, gw6.Masked(), router.Addr6)
	}
}

// addRoute adds a route through a gateway on a wire of ns.
func addRoute(t testing.TB, ns *netlab.Namespace, dst netip.Prefix, gateway netip.Addr) {
	t.Helper()
	testkit.Must(t, ns.Netlink().RouteAdd(&netlink.Route{Dst: netlab.IPNet(dst), Gw: gateway.AsSlice()}))
}
