package dataplane

import (
	"bytes"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// What a node finds on its host and in leases is not always of its own making.

func TestDeviceHasTheMACOfTheLease(t *testing.T) {
	inside(t, func(n node) {
		// As stock flannel leaves it, with a MAC by chance.
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel.1"
		attrs.HardwareAddr = must(net.ParseMAC("02:11:22:33:44:55"))
		cfg := n.config(`{"Type": "vxlan"}`)
		n.must(n.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, VtepDevIndex: cfg.Underlay.Index, SrcAddr: cfg.Underlay.IPv4.AsSlice()}))
		cfg.Own.Attrs = must(Announce(cfg.Settings, cfg.Choice, config(t, `{"Type": "vxlan"}`), cfg.Underlay, Self{MACs: must(ReadMACs(cfg.Settings, cfg.Choice))}, partial))
		if !strings.Contains(string(cfg.Own.BackendData), "02:11:22:33:44:55") {
			t.Fatalf("announced: %s", cfg.Own.BackendData)
		}
		_, end := n.open(cfg)
		end()
		n.must(n.nl.LinkDel(n.link("flannel.1")))
		_, end = n.open(cfg)
		if got := n.link("flannel.1").Attrs().HardwareAddr.String(); got != "02:11:22:33:44:55" {
			t.Errorf("recreated with %s", got)
		}
		end()
		// A file may say another.
		cfg.Own.BackendData = []byte(`{"VNI":1,"VtepMAC":"02:11:22:33:44:66"}`)
		n.open(cfg)
		if got := n.link("flannel.1").Attrs().HardwareAddr.String(); got != "02:11:22:33:44:66" {
			t.Errorf("the file says 02:11:22:33:44:66, the device has %s", got)
		}
	})
}

func TestFamilyThatFailsLeavesTheOtherInPlace(t *testing.T) {
	inside(t, func(n node) {
		p, end := n.open(n.config(`{"Type": "vxlan"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2"))})
		end()
		n.must(n.nl.LinkDel(n.link("flannel-v6.1")))
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel-v6.1"
		n.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		if _, err := Open(n.config(`{"Type": "vxlan"}`)); err == nil || !strings.Contains(err.Error(), "flannel-v6.1 exists and is not a VXLAN device") {
			t.Errorf("opened: %v", err)
		}
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1")
		// One that was made for nothing goes.
		n.must(n.nl.LinkDel(n.link("flannel.1")))
		if _, err := Open(n.config(`{"Type": "vxlan"}`)); err == nil || n.has("flannel.1") {
			t.Errorf("flannel.1 left: %v", err)
		}
	})
}

// The kernel has no second VXLAN device of the same VNI for one family of the
// underlay, and the one that carries both families may be of another name.
func TestFamilyIsAddedWhereTheUnderlayHasOne(t *testing.T) {
	for name, without := range map[string]func(*Config){
		"IPv6": func(c *Config) {
			c.Underlay.IPv4, c.Underlay.PublicIP = netip.Addr{}, netip.Addr{}
			c.Own.IPv6Subnet = netip.Prefix{}
		},
		"IPv4": func(c *Config) {
			c.Underlay.IPv6, c.Underlay.PublicIPv6 = netip.Addr{}, netip.Addr{}
			c.Own.Subnet = netip.Prefix{}
		},
	} {
		inside(t, func(n node) {
			cfg := n.config(`{"Type": "vxlan"}`)
			both := cfg.Own
			without(&cfg)
			_, end := n.open(cfg)
			end()
			cfg.Own = both
			p, err := Open(cfg)
			if err != nil {
				t.Fatalf("over %s: %v", name, err)
			}
			n.must(p.Close())
		})
	}
}

func TestPlainRoutesOverAnotherInterfaceGo(t *testing.T) {
	inside(t, func(n node) {
		p, end := n.open(n.config(`{"Type": "udp", "DirectRouting": true}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "udp", "")})
		end()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth1"
		n.must(n.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire1"}))
		n.must(n.nl.LinkSetUp(n.link("wire1")), n.nl.LinkSetUp(n.link("eth1")))
		n.must(n.nl.AddrAdd(n.link("eth1"), &netlink.Addr{IPNet: netlab.IPNet(netip.MustParsePrefix("203.0.113.1/24"))}))
		cfg := n.config(`{"Type": "udp"}`)
		u := &cfg.Underlay
		u.Name, u.Index, u.IPv4, u.IPv6 = "eth1", n.link("eth1").Attrs().Index, netip.MustParseAddr("203.0.113.1"), netip.Addr{}
		u.PublicIP, u.PublicIPv6 = u.IPv4, u.IPv6
		moved := leaseOf(2, "udp", "")
		moved.PublicIP = netip.MustParseAddr("203.0.113.2")
		p, _ = n.open(cfg)
		p.SetLeases([]lease.Lease{moved})
		n.wantRoutes("10.5.0.0/16 dev flannel0", "fd00:5::/48 dev flannel0")
	})
}

// Leases with another key may have subnets of this node's, or of everybody's.
func TestOwnPodsAreNotRoutedToAPeer(t *testing.T) {
	inside(t, func(n node) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "cni0"
		n.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		n.must(n.nl.LinkSetUp(n.link("cni0")))
		n.must(n.nl.AddrAdd(n.link("cni0"), &netlink.Addr{IPNet: netlab.IPNet(netip.MustParsePrefix("10.5.1.1/24"))}))
		var log bytes.Buffer
		cfg := n.config(`{"Type": "auto"}`)
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		p, _ := n.open(cfg)
		var leases []lease.Lease
		for i, subnet := range []string{"10.5.1.0/24", "10.5.1.128/25", "10.5.0.0/16", "10.6.0.0/24"} {
			l := leaseOf(byte(2+i), []string{"host-gw", "", "host-gw", ""}[i], "")
			l.Subnet = netip.MustParsePrefix(subnet)
			leases = append(leases, l)
		}
		p.SetLeases(leases)
		n.wantRoutes()
		if peers := p.backend(); peers != nil && len(peers.Status().Peers) > 0 {
			t.Errorf("they may send: %v", peers.Status().Peers)
		}
		for _, want := range []string{"it overlaps this node's subnet 10.5.1.0/24", "it is outside the networks"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the log lacks %q:\n%s", want, &log)
			}
		}
	})
}

// A reservation, which names no node, is not among them.
func TestStatusNamesSubnetsOfPeersThatNoBackendLeadsTo(t *testing.T) {
	inside(t, func(n node) {
		var log bytes.Buffer
		cfg := n.config(`{"Type": "auto"}`)
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		p, _ := n.open(cfg)
		reserved := leaseOf(4, "", "")
		reserved.PublicIP = netip.Addr{}
		leases := []lease.Lease{leaseOf(5, "wireguard", ""), leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "ipip", ""), reserved}
		for range 3 {
			p.SetLeases(leases)
		}
		want := []status.Unreached{
			{Subnet: leases[2].Subnet, PublicIP: leases[2].PublicIP, Why: `its backend is "ipip", which this node does not support`},
			{Subnet: leases[0].Subnet, PublicIP: leases[0].PublicIP, Why: `its backend is "wireguard", which this node does not support`},
		}
		if got := p.Status(); !slices.Equal(got.Unreached, want) || len(got.Peers) != 1 {
			t.Errorf("status has %+v and %d peers, want %+v and one", got.Unreached, len(got.Peers), want)
		}
		if n := strings.Count(log.String(), "which this node does not support"); n != len(want) {
			t.Errorf("the log has %d reasons, want each once:\n%s", n, &log)
		}
		p.SetLeases(leases[1:2])
		if got := p.Status().Unreached; len(got) != 0 {
			t.Errorf("with the leases gone status has %+v", got)
		}
	})
}

// The kernel does not announce that an address has moved behind a router.
func TestPeerThatLeavesTheLinkIsReachedThroughTheTunnel(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "vxlan", "DirectRouting": true}`))
		leases := []lease.Lease{leaseOf(2, "vxlan", vtepOf("2"))}
		if !p.SetLeases(leases) {
			t.Error("no other look is asked for")
		}
		n.wantRoutes("10.5.2.0/24 via 192.0.2.2 dev eth0")
		n.route("192.0.2.2/32", "192.0.2.254")
		p.links.since = p.links.since.Add(-onLinkFor)
		p.SetLeases(leases)
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "192.0.2.2/32 via 192.0.2.254 dev eth0")
	})
}

// Pods that were started under a former lease are still there, and another node may
// have that lease now.
func TestSubnetThatABridgeOfTheHostHasStaysItsOwn(t *testing.T) {
	inside(t, func(n node) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "cni0"
		n.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		n.must(n.nl.LinkSetUp(n.link("cni0")))
		addr := &netlink.Addr{IPNet: netlab.IPNet(netip.MustParsePrefix("10.5.2.1/24"))}
		n.must(n.nl.AddrAdd(n.link("cni0"), addr))
		p, _ := n.open(n.config(`{"Type": "auto"}`))
		leases := []lease.Lease{leaseOf(3, "vxlan", vtepOf("3"))}
		p.SetLeases(leases) // the table knows what there is
		leases = append(leases, leaseOf(2, "vxlan", vtepOf("2")))
		if !p.SetLeases(leases) {
			t.Error("no other try is asked for")
		}
		r := must(n.nl.RouteGet(net.ParseIP("10.5.2.7")))
		if r[0].LinkIndex != n.link("cni0").Attrs().Index {
			t.Errorf("the pods on cni0 are cut off: %v", r)
		}
		n.must(n.nl.AddrDel(n.link("cni0"), addr))
		p.SetLeases(leases)
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.3.0/24 via 10.5.3.0 dev flannel.1")
	})
}

func TestLeaseInAFileWithABackendThatTheNodeLacksIsLogged(t *testing.T) {
	inside(t, func(n node) {
		var log bytes.Buffer
		cfg := n.config(`{"Type": "udp"}`)
		cfg.Own.BackendType = "auto"
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		n.open(cfg)
		if !strings.Contains(log.String(), "backends=vxlan") || !strings.Contains(log.String(), "BackendType") || strings.Count(log.String(), "WARN") != 1 {
			t.Error(&log)
		}
	})
}

func TestNothingIsLeftForANodeThatCarriesNoPackets(t *testing.T) {
	inside(t, func(n node) {
		cfg := n.config(`{"Type": "vxlan", "DirectRouting": true}`)
		p, end := n.open(cfg)
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(9, "vxlan", vtepOf("9"))})
		end()
		n.route("10.5.7.0/24", "192.0.2.7")
		alloc := n.config(`{"Type": "alloc"}`)
		p, _ = n.open(alloc)
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2"))})
		n.wantRoutes("10.5.7.0/24 via 192.0.2.7 dev eth0")
		if n.has("flannel.1") || n.has("flannel-v6.1") {
			t.Error("a VXLAN device is left")
		}
	})
}

func TestPeerWhoseEntriesAreRefusedHasNoRouteIntoNothing(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "auto"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", twill)})
		own := n.link("flannel.1").Attrs().HardwareAddr.String()
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", `{"VNI":1,"VtepMAC":"`+own+`"}`)})
		n.wantRoutes()
	})
}
