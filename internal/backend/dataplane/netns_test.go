package dataplane

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/nlwatch"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// The tests here need root. Each has a namespace of its own, whose underlay is
// eth0, one end of a veth, with the addresses of node 1. Node 9 is behind a
// router.

func TestMain(m *testing.M) { netlabtest.Main(m) }

// node is the namespace of a test. Its methods run on the thread inside it.
type node struct {
	testing.TB
	nl     *netlink.Handle
	record string
}

func inside(t testing.TB, f func(n node)) {
	t.Helper()
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		n := node{t, ns.Netlink(), filepath.Join(t.TempDir(), "routes")}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		n.must(n.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}))
		for _, name := range []string{"wire", "eth0"} {
			n.must(n.nl.LinkSetIP6AddrGenMode(n.link(name), 1)) // no link-local ones, which come late
			n.must(n.nl.LinkSetUp(n.link(name)))
		}
		for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			n.must(n.nl.AddrAdd(n.link("eth0"), &netlink.Addr{IPNet: netlab.IPNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}))
		}
		n.route("198.51.100.0/24", "192.0.2.254")
		f(n)
	})
}

func (n node) must(errs ...error) {
	n.Helper()
	if err := errors.Join(errs...); err != nil {
		n.Fatal(err)
	}
}

func (n node) link(name string) netlink.Link {
	n.Helper()
	l, err := n.nl.LinkByName(name)
	n.must(err)
	return l
}

// route adds a route as an operator does.
func (n node) route(dst, via string) {
	n.Helper()
	n.must(n.nl.RouteAdd(&netlink.Route{Dst: netlab.IPNet(netip.MustParsePrefix(dst)), Gw: net.ParseIP(via), LinkIndex: n.link("eth0").Attrs().Index}))
}

// config is a network configuration with pods of both families.
func config(t testing.TB, asked string) *lease.Config {
	t.Helper()
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": ` + asked + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func settings(t testing.TB, asked string) backend.Settings {
	t.Helper()
	s, err := backend.SettingsOf(config(t, asked), "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// config is that of a node with pods of both families.
func (n node) config(asked string) Config {
	n.Helper()
	u := eth0
	u.Index = n.link("eth0").Attrs().Index
	s := settings(n, asked)
	var choice backend.Choice
	if s.Carries() {
		choice = must(s.Choose(nil))
	}
	return Config{
		Settings: s, Choice: choice, Underlay: u, Record: n.record,
		Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/48")},
		Own: lease.Lease{
			Attrs:  lease.Attrs{PublicIP: u.PublicIP, PublicIPv6: u.PublicIPv6, BackendType: "auto"},
			Subnet: netip.MustParsePrefix("10.5.1.0/24"), IPv6Subnet: netip.MustParsePrefix("fd00:5:0:1::/64"),
		},
		UDP:    udp.Config{TunName: "flannel0", Pairs: 1},
		Logger: slog.New(slog.DiscardHandler),
	}
}

// open opens a plane that runs until the end of the test, or the returned
// function is called.
func (n node) open(cfg Config) (p *Plane, end func()) {
	n.Helper()
	p, err := Open(cfg)
	n.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	ended := false
	end = func() {
		if !ended {
			ended = true
			cancel()
			if err := errors.Join(<-ran, p.Close()); err != nil {
				n.Error(err)
			}
		}
	}
	n.Cleanup(end)
	return p, end
}

// routes are those to peers, as ip-route(8) writes them, in order.
func (n node) routes() []string {
	n.Helper()
	var all []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := n.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_BOOT},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		n.must(err)
		for _, r := range list {
			dev, err := n.nl.LinkByIndex(r.LinkIndex)
			n.must(err)
			s := r.Dst.String()
			if r.Gw != nil {
				s += " via " + r.Gw.String()
			}
			all = append(all, s+" dev "+dev.Attrs().Name)
		}
	}
	slices.Sort(all)
	return slices.DeleteFunc(all, func(s string) bool { return strings.HasPrefix(s, "198.51.100.") })
}

func (n node) wantRoutes(want ...string) {
	n.Helper()
	if got := n.routes(); !slices.Equal(got, want) {
		n.Errorf("routes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func (n node) has(device string) bool {
	_, err := n.nl.LinkByName(device)
	return err == nil
}

// peer is the lease of node i with what it says of its backends.
func leaseOf(i byte, kind, data string) lease.Lease {
	l := peerWith(kind, data, "")
	l.PublicIP = netip.AddrFrom4([4]byte{192, 0, 2, i})
	if i == 9 {
		l.PublicIP = netip.MustParseAddr("198.51.100.9")
	}
	l.PublicIPv6 = netip.Addr{}
	l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, i, 0}), 24)
	l.IPv6Subnet = netip.Prefix{}
	return l
}

func vtepOf(i string) string { return `{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0:0` + i + `"}` }

func TestPeersOfAllKindsHaveOneRouteEach(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "auto"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(4, "host-gw", "")})
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.4.0/24 via 192.0.2.4 dev eth0")
		if n.has("flannel0") {
			t.Error("flannel0 is there, and no peer needs it")
		}
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "", ""), leaseOf(4, "host-gw", "")})
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.3.0/24 dev flannel0", "10.5.4.0/24 via 192.0.2.4 dev eth0")

		var got []string
		for _, peer := range p.Status().Peers {
			got = append(got, peer.PublicIP.String()+" "+peer.Backend)
		}
		if want := []string{"192.0.2.2 vxlan", "192.0.2.3 udp", "192.0.2.4 host-gw"}; !slices.Equal(got, want) {
			t.Errorf("status: %v, want %v", got, want)
		}
		p.SetLeases(nil)
		n.wantRoutes()
	})
}

func TestDirectRoutingGoesRoundTheTunnelOnTheLinkOnly(t *testing.T) {
	for asked, behind := range map[string]string{
		`{"Type": "vxlan", "DirectRouting": true}`: "10.5.9.0/24 via 10.5.9.0 dev flannel.1",
		`{"Type": "udp", "DirectRouting": true}`:   "10.5.0.0/16 dev flannel0",
	} {
		inside(t, func(n node) {
			p, _ := n.open(n.config(asked))
			leases := []lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(9, "vxlan", vtepOf("9"))}
			if !p.choice.Has(backend.VXLAN) {
				leases = []lease.Lease{leaseOf(2, "udp", ""), leaseOf(9, "udp", "")}
			}
			p.SetLeases(leases)
			want := []string{"10.5.2.0/24 via 192.0.2.2 dev eth0", behind}
			if p.choice.First() == backend.UDP {
				want = append(want, "fd00:5::/48 dev flannel0")
			}
			slices.Sort(want)
			n.wantRoutes(want...)
		})
	}
}

// news are the changes of routes and devices that a monitor has seen.
func news(w *nlwatch.Watcher) (kinds []uint16) {
	for {
		messages, _ := w.Next(time.Now().Add(500 * time.Millisecond))
		if len(messages) == 0 {
			return kinds
		}
		for _, m := range messages {
			kinds = append(kinds, m.Header.Type)
		}
	}
}

func (n node) monitor() *nlwatch.Watcher {
	n.Helper()
	w, err := nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	n.must(err)
	n.Cleanup(w.Close)
	news(w) // the kernel still brings up the wire
	return w
}

func TestPeerThatChangesItsBackendIsNeverWithoutARoute(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "auto"}`))
		kinds := [][2]string{{"", ""}, {"vxlan", vtepOf("2")}, {"host-gw", ""}, {"", ""}}
		routes := []string{"10.5.2.0/24 dev flannel0", "10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.2.0/24 via 192.0.2.2 dev eth0"}
		p.SetLeases([]lease.Lease{leaseOf(2, kinds[0][0], kinds[0][1])})
		w := n.monitor()
		for i := range 3 * len(routes) {
			k := kinds[i%3]
			p.SetLeases([]lease.Lease{leaseOf(2, k[0], k[1])})
			n.wantRoutes(routes[i%3])
		}
		if slices.Contains(news(w), unix.RTM_DELROUTE) {
			t.Error("the route was deleted for a moment")
		}
	})
}

func TestRestartFindsAllInPlaceAndChangesNothing(t *testing.T) {
	for _, asked := range []string{`{"Type": "vxlan"}`, `{"Type": "vxlan", "DirectRouting": true}`, `{"Type": "host-gw"}`} {
		inside(t, func(n node) {
			leases := []lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(9, "vxlan", vtepOf("9"))}
			if strings.Contains(asked, "host-gw") {
				leases = []lease.Lease{leaseOf(2, "host-gw", "")}
			}
			p, end := n.open(n.config(asked))
			p.SetLeases(leases)
			before := n.routes()
			end()
			n.wantRoutes(before...)
			w := n.monitor()
			p, end = n.open(n.config(asked))
			p.SetLeases(leases)
			n.wantRoutes(before...)
			end()
			if kinds := news(w); len(kinds) > 0 {
				t.Errorf("%s: the restart made netlink messages of the kinds %v", asked, kinds)
			}
		})
	}
}

// A peer that has gone while the daemon was down leaves its route, which looks
// like an operator's.
func TestPlainRoutesOfAnEarlierRunAreKnownFromAnOperators(t *testing.T) {
	inside(t, func(n node) {
		p, end := n.open(n.config(`{"Type": "host-gw"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "host-gw", ""), leaseOf(3, "host-gw", ""), leaseOf(4, "host-gw", "")})
		end()
		n.route("10.5.7.0/24", "192.0.2.7")
		n.must(os.WriteFile(n.record, append(must(os.ReadFile(n.record)), "10.5.6.0/24 via"...), 0o644))
		p, end = n.open(n.config(`{"Type": "host-gw"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "host-gw", "")})
		n.wantRoutes("10.5.2.0/24 via 192.0.2.2 dev eth0", "10.5.7.0/24 via 192.0.2.7 dev eth0")
		end()

		out := new(testkit.Log)
		n.must(Clean("flannel0", nil, nil, n.record, out.Logger()))
		if text := out.String(); strings.Count(text, "removed") != 1 || !strings.Contains(text, "10.5.2.0/24 via 192.0.2.2 dev eth0") {
			t.Errorf("log:\n%s", text)
		}
		n.wantRoutes("10.5.7.0/24 via 192.0.2.7 dev eth0")
		if _, err := os.Stat(n.record); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the list is still there: %v", err)
		}
	})
}

// Stock flannel's host-gw and DirectRouting leave routes that would go before
// flannel0's.
func TestPlainRoutesOfStockFlannelGoWhereUDPTakesOver(t *testing.T) {
	inside(t, func(n node) {
		n.route("10.5.2.0/24", "192.0.2.2")
		n.route("10.5.3.0/24", "192.0.2.33") // not through that peer
		n.route("10.5.4.0/24", "192.0.2.4")  // a peer that has not changed over yet
		n.route("10.5.7.0/24", "192.0.2.7")  // no peer's
		p, _ := n.open(n.config(`{"Type": "udp"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "", ""), leaseOf(3, "", ""), leaseOf(4, "vxlan", vtepOf("4"))})
		n.wantRoutes("10.5.0.0/16 dev flannel0", "10.5.3.0/24 via 192.0.2.33 dev eth0", "10.5.7.0/24 via 192.0.2.7 dev eth0", "fd00:5::/48 dev flannel0")
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestListOfRoutesDoesNotGrowForEver(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "host-gw"}`))
		for i := range 600 {
			l := leaseOf(2, "host-gw", "")
			l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i/64) + 2, byte(i%64) * 4}), 30)
			p.SetLeases([]lease.Lease{l})
		}
		if lines := strings.Count(string(must(os.ReadFile(n.record))), "via"); lines > 300 {
			t.Errorf("%d lines for one route", lines)
		}
	})
}

func TestVXLANThatIsRefusedLeavesUDP(t *testing.T) {
	inside(t, func(n node) {
		// What an operator has made is not taken away.
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel.1"
		n.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		_, err := Open(n.config(`{"Type": "vxlan"}`))
		if err == nil || !strings.Contains(err.Error(), "flannel.1") {
			t.Fatalf("without a choice: %v", err)
		}
		p, _ := n.open(n.config(`{"Type": "auto"}`))
		if got := p.choice; !slices.Equal(got.Kinds, []backend.Kind{backend.UDP}) || !strings.Contains(got.Why, "flannel.1") {
			t.Errorf("%+v", got)
		}
		if got := p.Failed(); len(got) != 1 || got[backend.VXLAN] == nil {
			t.Errorf("failed: %v", got)
		}
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", twill)})
		n.wantRoutes("10.5.0.0/16 dev flannel0", "fd00:5::/48 dev flannel0")
		if _, ok := n.link("flannel.1").(*netlink.Bridge); !ok {
			t.Error("the operator's bridge is gone")
		}
	})
}

func TestDevicesOfTheLastConfigurationGo(t *testing.T) {
	inside(t, func(n node) {
		p, end := n.open(n.config(`{"Type": "vxlan"}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2"))})
		end()
		// That of another cluster on the same host, and one without a cluster.
		other := n.config(`{"Type": "vxlan", "VNI": 5}`)
		other.Networks = []netip.Prefix{netip.MustParsePrefix("10.6.0.0/16")}
		other.Own.Subnet, other.Own.IPv6Subnet = netip.MustParsePrefix("10.6.1.0/24"), netip.Prefix{}
		_, end = n.open(other)
		end()
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel.9"
		n.must(n.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 9, Port: 9999}))

		p, end = n.open(n.config(`{"Type": "vxlan", "VNI": 7}`))
		p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtep7)})
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.7")
		if n.has("flannel.1") || n.has("flannel-v6.1") {
			t.Error("devices of VNI 1 are left")
		}
		end()
		p, _ = n.open(n.config(`{"Type": "udp"}`))
		if !n.has("flannel.7") {
			t.Error("flannel.7 is gone before other routes were there")
		}
		p.SetLeases([]lease.Lease{leaseOf(2, "", "")})
		n.wantRoutes("10.5.0.0/16 dev flannel0", "fd00:5::/48 dev flannel0")
		if n.has("flannel.7") || n.has("flannel-v6.7") {
			t.Error("devices of VNI 7 are left")
		}
		if !n.has("flannel.5") || !n.has("flannel.9") {
			t.Error("devices of others are gone")
		}
	})
}

// What stands in the way of flannel0 may go.
func TestUDPThatCannotBeOpenedForAPeerIsWorthAnotherTry(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.config(`{"Type": "vxlan"}`))
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel0"
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		n.must(n.nl.LinkAdd(bridge))
		leases := []lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "", "")}
		if !p.SetLeases(leases) {
			t.Error("with a bridge in the way no other try is asked for")
		}
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1")
		n.must(n.nl.LinkDel(bridge))
		p.SetLeases(leases)
		n.wantRoutes("10.5.2.0/24 via 10.5.2.0 dev flannel.1", "10.5.3.0/24 dev flannel0")
	})
}

func TestDeletedDeviceEndsThePlane(t *testing.T) {
	for _, device := range []string{"flannel.1", "flannel-v6.1", "flannel0"} {
		inside(t, func(n node) {
			p := must(Open(n.config(`{"Type": "vxlan"}`)))
			defer p.Close()
			p.SetLeases([]lease.Lease{leaseOf(2, "vxlan", vtepOf("2")), leaseOf(3, "", "")})
			ran := make(chan error, 1)
			go func() { ran <- p.Run(context.Background()) }()
			n.must(n.nl.LinkDel(n.link(device)))
			if err := <-ran; !errors.Is(err, ErrDeviceGone) {
				t.Errorf("%s: %v", device, err)
			}
		})
	}
}

func TestPodsMTUFitsEveryWay(t *testing.T) {
	v4only := func(c *Config) {
		c.Own.IPv6Subnet = netip.Prefix{}
		c.Underlay.IPv6, c.Underlay.PublicIPv6 = netip.Addr{}, netip.Addr{}
	}
	v6under := func(c *Config) { c.Underlay.IPv4, c.Underlay.PublicIP = netip.Addr{}, netip.Addr{} }
	for _, tt := range []struct {
		backend string
		change  func(*Config)
		mtu     int
	}{
		{`{"Type": "vxlan"}`, v4only, 1450},
		{`{"Type": "vxlan"}`, nil, 1430}, // flannel-v6.1 is over IPv6
		{`{"Type": "vxlan"}`, v6under, 1430},
		{`{"Type": "vxlan", "MTU": 1400}`, v4only, 1350},
		{`{"Type": "auto"}`, v4only, 1450},
		{`{"Type": "udp"}`, v4only, 1472},
		{`{"Type": "udp"}`, v6under, 1452},
		{`{"Type": "udp", "MTU": 1400}`, v4only, 1372},
		{`{"Type": "host-gw"}`, v4only, 1500},
	} {
		inside(t, func(n node) {
			cfg := n.config(tt.backend)
			if tt.change != nil {
				tt.change(&cfg)
			}
			p, _ := n.open(cfg)
			if p.MTU() != tt.mtu {
				t.Errorf("%s over %s: %d, want %d", tt.backend, cfg.Underlay, p.MTU(), tt.mtu)
			}
		})
	}
}

func TestPlainRoutesAreRefusedBehindATranslatedAddress(t *testing.T) {
	inside(t, func(n node) {
		cfg := n.config(`{"Type": "host-gw"}`)
		cfg.Underlay.PublicIP = netip.MustParseAddr("203.0.113.1")
		if _, err := Open(cfg); err == nil || !strings.Contains(err.Error(), "203.0.113.1") {
			t.Errorf("opened: %v", err)
		}
	})
}
