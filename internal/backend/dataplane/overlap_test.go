package dataplane

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// A pod network that overlaps what the nodes need must not cut them off.

func TestSubnetThatSwallowsAnAddressInUseIsRefused(t *testing.T) {
	for what, in := range map[string]string{"gateway": "10.5.2.254", "store": "10.5.3.7", "peer": "10.5.4.9", "peer's own": "10.5.5.5"} {
		inside(t, func(n node) {
			out := new(testkit.Log)
			cfg := n.config(`{"Type": "vxlan"}`)
			cfg.Logger = out.Logger()
			cfg.InUse = []netip.Addr{netip.MustParseAddr("10.5.2.254"), netip.MustParseAddr("10.5.3.7")}
			p, _ := n.open(cfg)
			leases := []lease.Lease{leaseOf(6, "vxlan", vtepOf("6"))}
			for i := byte(2); i <= 5; i++ {
				leases = append(leases, leaseOf(i, "vxlan", vtepOf(string('0'+rune(i)))))
			}
			leases[0].PublicIP = netip.MustParseAddr("10.5.4.9")
			leases[4].PublicIP = netip.MustParseAddr("10.5.5.5")
			p.SetLeases(leases)
			n.wantRoutes("10.5.6.0/24 via 10.5.6.0 dev flannel.1")
			if !strings.Contains(out.String(), "it contains "+in) {
				t.Errorf("the log does not name the %s at %s:\n%s", what, in, out)
			}
			// As soon as the address is another, there is a route.
			leases[0].PublicIP = netip.MustParseAddr("192.0.2.6")
			p.SetLeases(leases)
			n.wantRoutes("10.5.4.0/24 via 10.5.4.0 dev flannel.1", "10.5.6.0/24 via 10.5.6.0 dev flannel.1")
		})
	}
}

// What a node claims as its own address has no other node's subnet refused, whether by
// mistake (the address of its bridge, or of the pod that it runs in) or on purpose.
func TestPeerAtAnAddressOfPodsIsRefusedAndNoOther(t *testing.T) {
	for what, claimed := range map[string]string{
		"another peer's pod": "10.5.2.7", "a pod of this node": "10.5.1.7", "a pod of its own": "10.5.3.1",
	} {
		inside(t, func(n node) {
			out := new(testkit.Log)
			cfg := n.config(`{"Type": "auto"}`)
			cfg.Logger = out.Logger()
			p, _ := n.open(cfg)
			leases := []lease.Lease{cfg.Own, leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "vxlan", vtepOf("3"))}
			leases[2].PublicIP = netip.MustParseAddr(claimed)
			p.SetLeases(leases)
			n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1")
			if want := "its public address " + claimed + " is in a pod subnet"; !strings.Contains(out.String(), want) {
				t.Errorf("%s: the log has no %q:\n%s", what, want, out)
			}
			leases[2].PublicIP = netip.MustParseAddr("192.0.2.3")
			p.SetLeases(leases)
			n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.3.0/24 via 10.5.3.0 dev flannel.1")
		})
	}
}

func TestPeerAtABroadcastAddressIsRefused(t *testing.T) {
	inside(t, func(n node) {
		out := new(testkit.Log)
		cfg := n.config(`{"Type": "auto"}`)
		cfg.Logger = out.Logger()
		p, _ := n.open(cfg)
		l := leaseOf(2, "vxlan", twill)
		l.PublicIP = netip.MustParseAddr("192.0.2.255")
		p.SetLeases([]lease.Lease{l, leaseOf(3, "vxlan", vtepOf("3"))})
		n.wantRoutes("10.5.3.0/24 via 10.5.3.0 dev flannel.1")
		if !strings.Contains(out.String(), "192.0.2.255 is a broadcast address of interface eth0") {
			t.Errorf("log:\n%s", out)
		}
	})
}

// Docker's default bridge has the network's prefix until Docker is given the node's
// subnet, which it learns from subnet.env.
func TestUDPStartsWhereABridgeHasTheNetworksPrefix(t *testing.T) {
	inside(t, func(n node) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "docker0"
		n.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		n.must(n.nl.LinkSetUp(n.link("docker0")))
		addr := &netlink.Addr{IPNet: netlab.IPNet(netip.MustParsePrefix("10.5.0.1/16"))}
		n.must(n.nl.AddrAdd(n.link("docker0"), addr))
		out := new(testkit.Log)
		cfg := n.config(`{"Type": "udp"}`)
		cfg.Logger = out.Logger()
		p, _ := n.open(cfg)
		if !p.SetLeases([]lease.Lease{leaseOf(2, "", "")}) {
			t.Error("no other try is asked for")
		}
		if !strings.Contains(out.String(), "interface docker0 has an address in that subnet") {
			t.Errorf("log:\n%s", out)
		}
		if r := must(n.nl.RouteGet(net.ParseIP("10.5.0.7"))); r[0].LinkIndex != n.link("docker0").Attrs().Index {
			t.Errorf("the containers on docker0 are cut off: %v", r)
		}
		n.must(n.nl.AddrDel(n.link("docker0"), addr))
		testkit.Eventually(t, "the network is routed into flannel0", func() bool {
			r, err := n.nl.RouteGet(net.ParseIP("10.5.2.7"))
			return err == nil && r[0].LinkIndex == n.link("flannel0").Attrs().Index
		})
	})
}

// Of another program's it is left alone, and taken when it goes.
func TestRouteOfTheNetworkDoesNotReplaceAnother(t *testing.T) {
	inside(t, func(n node) {
		n.route("10.5.0.0/16", "192.0.2.77")
		out := new(testkit.Log)
		cfg := n.config(`{"Type": "udp"}`)
		cfg.Logger = out.Logger()
		p, _ := n.open(cfg)
		p.SetLeases([]lease.Lease{leaseOf(2, "", "")})
		n.wantRoutes("10.5.0.0/16 via 192.0.2.77 dev eth0", "fd00:5::/48 dev flannel0")
		if !strings.Contains(out.String(), "another route to this destination exists") || strings.Count(out.String(), "kernel state incomplete") != 1 {
			t.Errorf("log:\n%s", out)
		}
		n.must(n.nl.RouteDel(&netlink.Route{Dst: netlab.IPNet(netip.MustParsePrefix("10.5.0.0/16"))}))
		testkit.Eventually(t, "the network is routed into flannel0", func() bool {
			for _, r := range n.routes() {
				if r == "10.5.0.0/16 dev flannel0" {
					return true
				}
			}
			return false
		})
	})
}
