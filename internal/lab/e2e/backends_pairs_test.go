//go:build amd64

package e2e

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// Kinds of node that run twilld, whatever backend the network's configuration
// names.
var (
	ownVXLAN  = twill("vxlan", "--backend=vxlan")
	ownUDP    = twill("udp", "--backend=udp")
	ownHostGW = twill("host-gw", "--backend=host-gw")
	ownAuto   = twill("auto", "--backend=auto")
)

// The largest packet that fits the path between two pods, by family: IPv4 over IPv4,
// IPv6 over IPv6, but for udp, which sends both over IPv4.
var (
	overVXLAN = [2]int{1450, 1430}
	overUDP   = [2]int{1472, 1472}
	overRoute = [2]int{1500, 1500}
)

// pair is two nodes that can talk.
type pair struct {
	a, b    kind
	stack   stack
	pathMTU [2]int
	device  devices // that host a sends through
}

var pairs = []pair{
	{ownVXLAN, ownVXLAN, dualStack, overVXLAN, viaVXLAN},
	{ownVXLAN, ownAuto, dualStack, overVXLAN, viaVXLAN},
	{ownVXLAN, ownUDP, dualStack, overUDP, viaUDP},
	{ownVXLAN, stockVXLAN, dualStack, overVXLAN, viaVXLAN},
	{ownVXLAN, stockUDP, ipv4Stack, overUDP, viaUDP},
	{ownAuto, ownAuto, dualStack, overVXLAN, viaVXLAN},
	{ownAuto, ownUDP, dualStack, overUDP, viaUDP},
	{ownAuto, stockVXLAN, dualStack, overVXLAN, viaVXLAN},
	{ownAuto, stockUDP, ipv4Stack, overUDP, viaUDP},
	{ownUDP, ownUDP, dualStack, overUDP, viaUDP},
	{ownUDP, stockUDP, ipv4Stack, overUDP, viaUDP},
	{ownHostGW, ownHostGW, dualStack, overRoute, viaLink},
	{ownHostGW, ownVXLAN, dualStack, overRoute, viaLink},
	{ownHostGW, ownAuto, dualStack, overRoute, viaLink},
	{ownHostGW, ownUDP, dualStack, overRoute, viaLink},
	{ownHostGW, stockHostGW, dualStack, overRoute, viaLink},
}

// expectPairs runs a parallel subtest for each pair, in a cluster with these
// options that prepare may change before its nodes run: pods talk at full MTU,
// through the device of the pair.
func expectPairs(t *testing.T, pairs []pair, opts clusterOptions, prepare func(c *cluster)) {
	opts.backend = `{"Type": "vxlan"}`
	for _, p := range pairs {
		opts := opts
		opts.stack = p.stack
		t.Run(p.a.name+" and "+p.b.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, opts)
			if prepare != nil {
				prepare(c)
			}
			c.run(p.a, p.b)
			c.expectPair(t, 0, 1, p.pathMTU)
			c.expectRoutes(t, 0, 1, p.device)
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd
func TestPodsOfAnyTwoNodesThatCanTalkDoSoAtFullMTU(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	expectPairs(t, pairs, clusterOptions{}, nil)
}

// A node that supports both is between two that cannot communicate.
//
//	pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//	   stock vxlan   │   auto   │  stock udp
//	                 └── etcd ──┘
func TestOneNodeTalksVXLANAndUDPAtTheSameTime(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	for _, own := range []kind{ownAuto, ownVXLAN} {
		t.Run(own.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
			c.run(stockVXLAN, own, stockUDP)
			c.expectPair(t, 0, 1, overVXLAN)
			c.expectPair(t, 1, 2, overUDP)
			c.expectPair(t, 0, 1, overVXLAN)
			c.expectRoutes(t, 1, 0, viaVXLAN)
			c.expectRoutes(t, 1, 2, viaUDP)
		})
	}
}

func TestPodsTalkInAnIPv6OnlyCluster(t *testing.T) {
	t.Parallel()
	expectPairs(t, []pair{
		{ownVXLAN, ownVXLAN, ipv6Stack, [2]int{0, 1430}, viaVXLAN},
		{ownUDP, ownUDP, ipv6Stack, [2]int{0, 1452}, viaUDP},
		{ownVXLAN, ownUDP, ipv6Stack, [2]int{0, 1452}, viaUDP},
		{ownAuto, ownAuto, ipv6Stack, [2]int{0, 1430}, viaVXLAN},
		{ownHostGW, ownHostGW, ipv6Stack, overRoute, viaLink},
	}, clusterOptions{ipv6Underlay: true}, nil)
}

// An underlay of one family carries the pods of both.
func TestPodsOfBothFamiliesTalkOverAnUnderlayOfOne(t *testing.T) {
	t.Parallel()
	for _, u := range []struct {
		name     string
		ipv6     bool
		vxlan    devices // one device: the kernel does not allow two with one VNI
		overhead int     // of IP and UDP
	}{
		{"ipv4", false, devices{"flannel.1", "flannel.1"}, 28},
		{"ipv6", true, devices{"flannel-v6.1", "flannel-v6.1"}, 48},
	} {
		t.Run(u.name, func(t *testing.T) {
			udp, vxlan := 1500-u.overhead, 1500-u.overhead-22
			expectPairs(t, []pair{
				{ownVXLAN, ownVXLAN, dualStack, [2]int{vxlan, vxlan}, u.vxlan},
				{ownVXLAN, ownUDP, dualStack, [2]int{udp, udp}, viaUDP},
				{ownUDP, ownUDP, dualStack, [2]int{udp, udp}, viaUDP},
			}, clusterOptions{ipv6Underlay: u.ipv6, ipv4Underlay: !u.ipv6}, nil)
		})
	}
}

// pod-a ── host a ─┬─ host b ── pod-b
//
//	└─ etcd, router ── host c ── pod-c
func TestDirectRoutingTakesPlainRoutesOnTheLinkAndTheTunnelBeyondTheRouter(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backend string
		device  devices
		tunnel  [2]int
	}{
		{"vxlan", viaVXLAN, overVXLAN},
		{"udp", viaUDP, overUDP},
		{"auto", viaVXLAN, overVXLAN},
	} {
		t.Run(tt.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{
				backend: fmt.Sprintf(`{"Type": %q, "DirectRouting": true}`, tt.backend),
				stack:   dualStack, routed: true, Options: threeHosts,
			})
			c.run(twill("a"), twill("b"), twill("c"))
			c.expectPair(t, 0, 1, overRoute)
			c.expectRoutes(t, 0, 1, viaLink)
			c.expectRoutes(t, 1, 0, viaLink)
			for i := range 2 {
				c.expectPair(t, i, 2, tt.tunnel)
				c.expectRoutes(t, i, 2, tt.device)
				c.expectRoutes(t, 2, i, tt.device)
			}
		})
	}
}

// Stock flannel's udp backend does not support DirectRouting: it sends through the
// tunnel, and drops packets that arrive in another way.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd      stock udp
func TestDirectRoutingLeavesTheTunnelToAStockUDPNode(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	const backend = `{"Type": "udp", "DirectRouting": true}`
	for _, own := range []kind{ownUDP, ownVXLAN, ownAuto} {
		t.Run(own.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: backend})
			c.run(own, stock("stock udp", backend))
			c.expectPair(t, 0, 1, overUDP)
			c.expectRoutes(t, 0, 1, viaUDP)
		})
	}
}

// pod-a ── host a ─┬── 9000 ── host b ── pod-b
//
//	└── etcd
func TestJumboFramesAreUsedByEveryBackend(t *testing.T) {
	t.Parallel()
	expectPairs(t, []pair{
		{ownVXLAN, ownVXLAN, dualStack, [2]int{8950, 8930}, viaVXLAN},
		{ownUDP, ownUDP, dualStack, [2]int{8972, 8972}, viaUDP},
		{ownVXLAN, ownUDP, dualStack, [2]int{8972, 8972}, viaUDP},
		{ownHostGW, ownHostGW, dualStack, [2]int{9000, 9000}, viaLink},
	}, clusterOptions{Options: netlab.Options{MTU: 9000}}, nil)
}

// IPv6 is turned off on all interfaces, as many operators do.
func TestPodsTalkWhereHostsHaveNoIPv6(t *testing.T) {
	t.Parallel()
	expectPairs(t, []pair{
		{ownVXLAN, ownVXLAN, ipv4Stack, overVXLAN, viaVXLAN},
		{ownUDP, ownUDP, ipv4Stack, overUDP, viaUDP},
		{ownVXLAN, ownUDP, ipv4Stack, overUDP, viaUDP},
		{ownHostGW, ownHostGW, ipv4Stack, overRoute, viaLink},
	}, clusterOptions{}, func(c *cluster) {
		for _, h := range c.nodes {
			testkit.Must(t, h.NS.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"), h.NS.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"))
		}
	})
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, now and then a router between the two
func TestDirectRoutingFollowsTheRoutesOfTheUnderlay(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backend string
		tunnel  devices
	}{{"vxlan", viaVXLAN}, {"udp", viaUDP}} {
		t.Run(tt.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q, "DirectRouting": true}`, tt.backend)})
			c.runTwill("--iptables-resync=1")
			talk := c.talk()
			become := func(what string, want devices) {
				t.Helper()
				for i := range 2 {
					if !testkit.Within(testkit.Patience, func() bool { return c.sendsThrough(i, 1-i, want) }) {
						t.Errorf("with %s:", what)
						c.expectRoutes(t, i, 1-i, want)
					}
				}
				c.waitTalk()
				talk.goesOn(t)
			}
			become("both on one link", viaLink)
			for i := range 2 {
				addRoute(t, c.nodes[i].NS, netip.PrefixFrom(c.nodes[1-i].Addr, 32), c.host.Addr)
			}
			become("a router between them", tt.tunnel)
			for i := range 2 {
				testkit.Must(t, c.nodes[i].NS.Netlink().RouteDel(&netlink.Route{
					Dst: netlab.IPNet(netip.PrefixFrom(c.nodes[1-i].Addr, 32)), Gw: c.host.Addr.AsSlice(),
				}))
			}
			become("both on one link again", viaLink)
		})
	}
}
