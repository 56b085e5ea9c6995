//go:build amd64

package e2e

import (
	"fmt"
	"testing"
)

// Kinds of node that run twilld, whatever backend the network's configuration
// names.
var (
	ownVXLAN  = twill("vxlan", "--backend=vxlan")
	ownUDP    = twill("udp", "--backend=udp")
	ownHostGW = twill("host-gw", "--backend=host-gw")
	ownAuto   = twill("auto", "--backend=auto")
)

// What fits whole into the way between two pods, by family: IPv4 over IPv4,
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
	device  string // that host a sends through
}

var pairs = []pair{
	{ownVXLAN, ownVXLAN, dualStack, overVXLAN, "flannel.1"},
	{ownVXLAN, ownAuto, dualStack, overVXLAN, "flannel.1"},
	{ownVXLAN, ownUDP, dualStack, overUDP, "flannel0"},
	{ownVXLAN, stockVXLAN, dualStack, overVXLAN, "flannel.1"},
	{ownVXLAN, stockUDP, ipv4Stack, overUDP, "flannel0"},
	{ownAuto, ownAuto, dualStack, overVXLAN, "flannel.1"},
	{ownAuto, ownUDP, dualStack, overUDP, "flannel0"},
	{ownAuto, stockVXLAN, dualStack, overVXLAN, "flannel.1"},
	{ownAuto, stockUDP, ipv4Stack, overUDP, "flannel0"},
	{ownUDP, ownUDP, dualStack, overUDP, "flannel0"},
	{ownUDP, stockUDP, ipv4Stack, overUDP, "flannel0"},
	{ownHostGW, ownHostGW, dualStack, overRoute, "eth0"},
	{ownHostGW, ownVXLAN, dualStack, overRoute, "eth0"},
	{ownHostGW, ownAuto, dualStack, overRoute, "eth0"},
	{ownHostGW, ownUDP, dualStack, overRoute, "eth0"},
	{ownHostGW, stockHostGW, dualStack, overRoute, "eth0"},
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd
func TestPodsOfAnyTwoNodesThatCanTalkDoSoAtFullMTU(t *testing.T) {
	must(t, buildStock())
	for _, p := range pairs {
		t.Run(p.a.name+" and "+p.b.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: p.stack})
			c.run(p.a, p.b)
			c.expectPair(t, 0, 1, p.pathMTU)
			c.expectRoutes(t, 0, 1, p.device)
		})
	}
}

// A node that speaks both is between two that cannot talk with each other.
//
//	pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//	   stock vxlan   │   auto   │  stock udp
//	                 └── etcd ──┘
func TestOneNodeTalksVXLANAndUDPAtTheSameTime(t *testing.T) {
	must(t, buildStock())
	for _, own := range []kind{ownAuto, ownVXLAN} {
		t.Run(own.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
			c.run(stockVXLAN, own, stockUDP)
			c.expectPair(t, 0, 1, overVXLAN)
			c.expectPair(t, 1, 2, overUDP)
			c.expectPair(t, 0, 1, overVXLAN)
			c.expectRoutes(t, 1, 0, "flannel.1")
			c.expectRoutes(t, 1, 2, "flannel0")
		})
	}
}

func TestPodsTalkInAnIPv6OnlyCluster(t *testing.T) {
	for _, p := range []pair{
		{ownVXLAN, ownVXLAN, ipv6Stack, [2]int{0, 1430}, "flannel.1"},
		{ownUDP, ownUDP, ipv6Stack, [2]int{0, 1452}, "flannel0"},
		{ownVXLAN, ownUDP, ipv6Stack, [2]int{0, 1452}, "flannel0"},
		{ownAuto, ownAuto, ipv6Stack, [2]int{0, 1430}, "flannel.1"},
		{ownHostGW, ownHostGW, ipv6Stack, overRoute, "eth0"},
	} {
		t.Run(p.a.name+" and "+p.b.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: p.stack, ipv6Underlay: true})
			c.run(p.a, p.b)
			c.expectPair(t, 0, 1, p.pathMTU)
			c.expectRoutes(t, 0, 1, p.device)
		})
	}
}

// Nodes without an IPv4 address carry IPv4 pods.
func TestPodsOfBothFamiliesTalkOverAnIPv6Underlay(t *testing.T) {
	for _, p := range []pair{
		{ownVXLAN, ownVXLAN, dualStack, [2]int{1430, 1430}, "flannel-v6.1"},
		{ownUDP, ownUDP, dualStack, [2]int{1452, 1452}, "flannel0"},
	} {
		t.Run(p.a.name+" and "+p.b.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: p.stack, ipv6Underlay: true})
			c.run(p.a, p.b)
			c.expectPair(t, 0, 1, p.pathMTU)
			c.expectRoutes(t, 0, 1, p.device)
		})
	}
}

// pod-a ── host a ─┬─ host b ── pod-b
//
//	└─ etcd, router ── host c ── pod-c
func TestDirectRoutingTakesPlainRoutesOnTheLinkAndTheTunnelBeyondTheRouter(t *testing.T) {
	for _, tt := range []struct {
		backend, device string
		tunnel          [2]int
	}{
		{"vxlan", "flannel.1", overVXLAN},
		{"udp", "flannel0", overUDP},
		{"auto", "flannel.1", overVXLAN},
	} {
		t.Run(tt.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{
				backend: fmt.Sprintf(`{"Type": %q, "DirectRouting": true}`, tt.backend),
				stack:   dualStack, routed: true, Options: threeHosts,
			})
			c.run(twill("a"), twill("b"), twill("c"))
			c.expectPair(t, 0, 1, overRoute)
			c.expectRoutes(t, 0, 1, "eth0")
			c.expectRoutes(t, 1, 0, "eth0")
			for i := range 2 {
				c.expectPair(t, i, 2, tt.tunnel)
				c.expectRoutes(t, i, 2, tt.device)
				c.expectRoutes(t, 2, i, tt.device)
			}
		})
	}
}
