package underlay

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// machine is a typical node:
//
//	eth0        192.0.2.1, 192.0.2.2, 2001:db8:1::1   default route, IPv4 and IPv6
//	eth1        198.51.100.1                          route to 203.0.113.0/24
//	eth2        198.51.100.65                         down
//	eth3        no address
//	cni0, veth1a2b, flannel0, br-0123456789ab, lo     not to be chosen
func machine(t *testing.T) *namespaced {
	n := namespace(t)
	lo, err := netlink.LinkByName("lo")
	n.must("find lo", err)
	n.must("set lo up", netlink.LinkSetUp(lo))
	veth := n.link("veth1a2b", "10.5.9.1/24")
	eth0 := n.link("eth0", "192.0.2.1/24", "192.0.2.2/24", "2001:db8:1::1/64")
	eth1 := n.link("eth1", "198.51.100.1/26")
	eth2 := n.link("eth2", "198.51.100.65/26")
	n.link("eth3")
	n.link("cni0", "10.5.1.1/24")
	n.link("flannel0", "10.5.1.0/32")
	n.link("br-0123456789ab", "172.18.0.1/16")
	n.must("set eth2 down", netlink.LinkSetDown(eth2))
	n.route("0.0.0.0/0", "192.0.2.254", eth0, 100)
	n.route("::/0", "2001:db8:1::fe", eth0, 0)
	n.route("203.0.113.0/24", "198.51.100.2", eth1, 0)
	n.route("10.5.200.0/24", "10.5.9.2", veth, 0)
	return n
}

const has = `; this host has eth0 (192.0.2.1, 192.0.2.2, 2001:db8:1::1), eth1 (198.51.100.1), eth2 (down, 198.51.100.65), eth3 (no address), 5 others of container networks or loopback; correct this, or select another interface with --iface`

func TestChoose(t *testing.T) {
	n := machine(t)
	v4 := func(o Options) Options { o.NeedIPv4 = true; return o }
	dual := func(o Options) Options { o.NeedIPv4, o.NeedIPv6 = true, true; return o }
	for _, tt := range []struct {
		name    string
		options Options
		want    string // name, IPv4, IPv6, PublicIP, PublicIPv6
		why     string
	}{
		{"nothing is said", v4(Options{}), "eth0 192.0.2.1 - 192.0.2.1 -", "default route"},
		{"both families", dual(Options{}), "eth0 192.0.2.1 2001:db8:1::1 192.0.2.1 2001:db8:1::1", "default route"},
		{"IPv6 alone", Options{NeedIPv6: true}, "eth0 - 2001:db8:1::1 - 2001:db8:1::1", "default route"},

		{"an empty name", v4(Options{Iface: []string{""}}), "eth0 192.0.2.1 - 192.0.2.1 -", "default route"},
		{"an empty expression", v4(Options{IfaceRegex: []string{""}}), "eth0 192.0.2.1 - 192.0.2.1 -", "default route"},
		{"an empty name where no other will do", v4(Options{Iface: []string{"eth9", ""}}), "eth0 192.0.2.1 - 192.0.2.1 -", "default route"},
		{"a name", v4(Options{Iface: []string{"eth1"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface=eth1"},
		{"an address", v4(Options{Iface: []string{"192.0.2.2"}}), "eth0 192.0.2.2 - 192.0.2.2 -", "--iface=192.0.2.2"},
		{"an IPv6 address", dual(Options{Iface: []string{"2001:db8:1::1"}}), "eth0 192.0.2.1 2001:db8:1::1 192.0.2.1 2001:db8:1::1", "--iface=2001:db8:1::1"},
		{"the first suitable one", v4(Options{Iface: []string{"eth9", "eth2", "eth3", "eth1", "eth0"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface=eth1"},
		{"a container link by name", v4(Options{Iface: []string{"veth1a2b"}}), "veth1a2b 10.5.9.1 - 10.5.9.1 -", "--iface=veth1a2b"},

		{"an expression", v4(Options{IfaceRegex: []string{"eth1|bond1"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface-regex=eth1|bond1"},
		{"an expression for addresses", v4(Options{IfaceRegex: []string{`198\.51\..*`}}), "eth1 198.51.100.1 - 198.51.100.1 -",
			`--iface-regex=198\.51\..* matches eth1, eth2; eth1 is the first suitable one`},
		{"an expression for the second address", v4(Options{IfaceRegex: []string{`192\.0\.2\.2`}}), "eth0 192.0.2.2 - 192.0.2.2 -", `--iface-regex=192\.0\.2\.2`},
		{"an expression for all", v4(Options{IfaceRegex: []string{".*"}}), "eth0 192.0.2.1 - 192.0.2.1 -",
			"--iface-regex=.* matches lo, veth1a2b, eth0, eth1, eth2, eth3, cni0, flannel0, br-0123456789ab; eth0 is the first suitable one"},
		{"the next expression", v4(Options{IfaceRegex: []string{"bond.", "eth[12]"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface-regex=eth[12] matches eth1, eth2; eth1 is the first suitable one"},
		{"a name before an expression", v4(Options{Iface: []string{"eth1"}, IfaceRegex: []string{"eth0"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface=eth1"},
		{"an expression where no name will do", v4(Options{Iface: []string{"eth9"}, IfaceRegex: []string{"eth0"}}), "eth0 192.0.2.1 - 192.0.2.1 -", "--iface-regex=eth0"},

		{"an expression for a part of an address", v4(Options{IfaceRegex: []string{`^198\.51\.`}}), "eth1 198.51.100.1 - 198.51.100.1 -",
			`--iface-regex=^198\.51\. matches part of eth1, eth2; eth1 is the first suitable one`},
		{"an expression for a part of a name", v4(Options{IfaceRegex: []string{"h1"}}), "eth1 198.51.100.1 - 198.51.100.1 -",
			"--iface-regex=h1 matches part of veth1a2b, eth1; eth1 is the first suitable one"},
		{"an expression for a part of one", v4(Options{IfaceRegex: []string{"^eth1"}}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface-regex=^eth1"},
		{"an expression for a part of one address", v4(Options{IfaceRegex: []string{`198\.51\.100\.1`}}), "eth1 198.51.100.1 - 198.51.100.1 -", `--iface-regex=198\.51\.100\.1`},
		{"an expression for the end of a name", v4(Options{IfaceRegex: []string{"0$"}}), "eth0 192.0.2.1 - 192.0.2.1 -",
			"--iface-regex=0$ matches part of eth0, cni0, flannel0; eth0 is the first suitable one"},

		{"a destination", v4(Options{CanReach: netip.MustParseAddr("203.0.113.9")}), "eth1 198.51.100.1 - 198.51.100.1 -", "--iface-can-reach=203.0.113.9"},
		{"an IPv6 destination", dual(Options{CanReach: netip.MustParseAddr("2001:db8:9::1")}), "eth0 192.0.2.1 2001:db8:1::1 192.0.2.1 2001:db8:1::1", "--iface-can-reach=2001:db8:9::1"},
		{"a name before a destination", v4(Options{Iface: []string{"eth0"}, CanReach: netip.MustParseAddr("203.0.113.9")}), "eth0 192.0.2.1 - 192.0.2.1 -", "--iface=eth0"},

		{"public address alone", v4(Options{PublicIP: netip.MustParseAddr("198.51.100.1")}), "eth1 198.51.100.1 - 198.51.100.1 -", "--public-ip=198.51.100.1"},
		{"public IPv6 address alone", dual(Options{PublicIPv6: netip.MustParseAddr("2001:db8:1::1")}), "eth0 192.0.2.1 2001:db8:1::1 192.0.2.1 2001:db8:1::1", "--public-ipv6=2001:db8:1::1"},
		{"public address behind NAT", v4(Options{Iface: []string{"eth0"}, PublicIP: netip.MustParseAddr("203.0.113.1")}), "eth0 192.0.2.1 - 203.0.113.1 -", "--iface=eth0"},
		{"public address that the interface has", v4(Options{Iface: []string{"eth0"}, PublicIP: netip.MustParseAddr("192.0.2.2")}), "eth0 192.0.2.2 - 192.0.2.2 -", "--iface=eth0"},
		{"both public addresses", dual(Options{Iface: []string{"eth0"}, PublicIP: netip.MustParseAddr("203.0.113.1"), PublicIPv6: netip.MustParseAddr("2001:db8:ff::1")}),
			"eth0 192.0.2.1 2001:db8:1::1 203.0.113.1 2001:db8:ff::1", "--iface=eth0"},
	} {
		i, err := Choose(tt.options)
		if err != nil {
			n.Errorf("%s: %v", tt.name, err)
			continue
		}
		got := i.Name
		for _, a := range []netip.Addr{i.IPv4, i.IPv6, i.PublicIP, i.PublicIPv6} {
			got += " " + strings.ReplaceAll(a.String(), "invalid IP", "-")
		}
		if got != tt.want || i.Why != tt.why {
			n.Errorf("%s:\n got %s because of %q\nwant %s because of %q", tt.name, got, i.Why, tt.want, tt.why)
		}
		if l, err := netlink.LinkByName(i.Name); err != nil || l.Attrs().Index != i.Index || i.MTU != 1500 {
			n.Errorf("%s: index %d, MTU %d of %s", tt.name, i.Index, i.MTU, i.Name)
		}
	}
}

func TestChooseSaysWhyNothingWillDo(t *testing.T) {
	n := machine(t)
	for _, tt := range []struct {
		name    string
		options Options
		want    string
	}{
		{"gone", Options{Iface: []string{"eth9"}}, "choose interface: --iface=eth9: no such interface" + has},
		{"down", Options{Iface: []string{"eth2"}}, "choose interface: --iface=eth2: eth2 is down; set it up with 'ip link set eth2 up'" + has},
		{"no address", Options{Iface: []string{"eth3"}}, "choose interface: --iface=eth3: eth3 has no usable IPv4 address" + has},
		{"several", Options{Iface: []string{"eth9", "eth3"}}, "choose interface: --iface=eth9: no such interface; --iface=eth3: eth3 has no usable IPv4 address" + has},
		{"no IPv6", Options{Iface: []string{"eth1"}, NeedIPv6: true}, "choose interface: --iface=eth1: eth1 has no usable IPv6 address" + has},
		{"not our address", Options{Iface: []string{"192.0.2.77"}}, "choose interface: --iface=192.0.2.77: no interface has this address" + has},
		{"loopback", Options{Iface: []string{"lo"}}, "choose interface: --iface=lo: lo has no usable IPv4 address" + has},
		{"loopback address", Options{Iface: []string{"127.0.0.1"}}, "choose interface: --iface=127.0.0.1: lo has no usable IPv4 address" + has},
		{"public address of another", Options{PublicIP: netip.MustParseAddr("203.0.113.1")}, "choose interface: --public-ip=203.0.113.1: no interface has this address" + has},

		{"expression for a part of a container's link", Options{IfaceRegex: []string{"veth"}},
			"choose interface: --iface-regex=veth: veth1a2b belongs to a container network; to select it anyway, use --iface=veth1a2b" + has},
		// The whole name must match, whatever else contains it.
		{"expression for a link that is down", Options{IfaceRegex: []string{"eth2"}}, "choose interface: --iface-regex=eth2: eth2 is down; set it up with 'ip link set eth2 up'" + has},
		{"expression for nothing", Options{IfaceRegex: []string{"bond.*"}}, "choose interface: --iface-regex=bond.* matches no name or address" + has},
		{"expression for a container's link", Options{IfaceRegex: []string{"veth.*"}},
			"choose interface: --iface-regex=veth.*: veth1a2b belongs to a container network; to select it anyway, use --iface=veth1a2b" + has},
		{"own destination", Options{CanReach: netip.MustParseAddr("192.0.2.1")}, "choose interface: --iface-can-reach=192.0.2.1 is an address of this host; specify an address of another host" + has},
		{"destination in a container", Options{CanReach: netip.MustParseAddr("10.5.200.1")}, "choose interface: --iface-can-reach=10.5.200.1: the route leads to veth1a2b, which belongs to a container network" + has},

		{"bad expression", Options{IfaceRegex: []string{"eth("}}, "--iface-regex=eth(: error parsing regexp: missing closing ): `eth(`"},
	} {
		tt.options.NeedIPv4 = !tt.options.NeedIPv6
		_, err := Choose(tt.options)
		if err == nil {
			n.Errorf("%s: no error", tt.name)
			continue
		}
		if got := err.Error(); got != tt.want {
			n.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
	if _, err := Choose(Options{}); err == nil {
		n.Error("no family is needed, and no error")
	}
}

func TestDefaultRouteIsTheBestThatWillDo(t *testing.T) {
	n := namespace(t)
	docker := n.link("docker0", "172.17.0.1/16")
	eth0 := n.link("eth0", "192.0.2.1/24")
	lan := n.link("br-lan", "198.51.100.1/24", "2001:db8:2::1/64")

	_, err := Choose(Options{NeedIPv4: true})
	if err == nil || !strings.Contains(err.Error(), "there is no default route; ") {
		t.Errorf("without a default route: got %v", err)
	}
	n.route("0.0.0.0/0", "172.17.0.2", docker, 10)
	_, err = Choose(Options{NeedIPv4: true})
	if err == nil || !strings.Contains(err.Error(), "default route: docker0 belongs to a container network") {
		t.Errorf("with one through docker0: got %v", err)
	}
	n.route("0.0.0.0/0", "198.51.100.2", lan, 200)
	n.route("0.0.0.0/0", "192.0.2.2", eth0, 50)
	if i, err := Choose(Options{NeedIPv4: true}); err != nil || i.Name != "eth0" {
		t.Errorf("got %+v, %v, want eth0, which has the lower metric", i, err)
	}
	if i, err := Choose(Options{NeedIPv4: true, NeedIPv6: true}); err != nil || i.Name != "br-lan" {
		t.Errorf("got %+v, %v, want br-lan, which has IPv6 too", i, err)
	}
}

func TestDefaultRouteMayHaveSeveralNextHops(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	eth1 := n.link("eth1", "198.51.100.1/24")
	hop := func(l netlink.Link, gw string) *netlink.NexthopInfo {
		return &netlink.NexthopInfo{LinkIndex: l.Attrs().Index, Gw: netip.MustParseAddr(gw).AsSlice()}
	}
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	n.must("add route", netlink.RouteAdd(&netlink.Route{Dst: all, MultiPath: []*netlink.NexthopInfo{hop(eth1, "198.51.100.2"), hop(eth0, "192.0.2.2")}}))
	if i, err := Choose(Options{NeedIPv4: true}); err != nil || i.Name != "eth1" {
		t.Errorf("got %+v, %v", i, err)
	}
}

func TestAddressesThatDoNotLastAreNotChosen(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0")
	n.must("ask for temporary addresses", os.WriteFile("/proc/sys/net/ipv6/conf/eth0/use_tempaddr", []byte("2"), 0o644))
	n.addr(eth0, "2001:db8:1::dead/64", func(a *netlink.Addr) { a.ValidLft, a.PreferedLft = 3600, 0 })
	n.addr(eth0, "2001:db8:1::1/64", func(a *netlink.Addr) {
		a.Flags |= unix.IFA_F_MANAGETEMPADDR
		a.ValidLft, a.PreferedLft = 7200, 3600
	})
	n.addr(eth0, "192.0.2.7/24", func(a *netlink.Addr) { a.ValidLft, a.PreferedLft = 3600, 0 })
	n.addr(eth0, "169.254.7.7/16", nil)
	n.addr(eth0, "fe80::7/64", nil)
	n.addr(eth0, "198.51.100.7/24", func(a *netlink.Addr) { a.ValidLft, a.PreferedLft = 3600, 3600 })

	var h host
	testkit.Eventually(t, "the kernel makes a temporary address", func() bool {
		var err error
		h, err = readHost()
		n.must("read host", err)
		s := h.String()
		return strings.Contains(s, " temporary") && strings.Contains(s, "2001:db8:1::dead deprecated")
	}, func() string { return h.String() })
	i, err := Choose(Options{Iface: []string{"eth0"}, NeedIPv4: true, NeedIPv6: true})
	if err != nil || i.IPv6.String() != "2001:db8:1::1" || i.IPv4.String() != "198.51.100.7" {
		t.Errorf("got %+v, %v", i, err)
	}
	// They can be chosen by name.
	i, err = Choose(Options{Iface: []string{"2001:db8:1::dead"}, PublicIP: netip.MustParseAddr("192.0.2.7"), NeedIPv4: true, NeedIPv6: true})
	if err != nil || i.IPv6.String() != "2001:db8:1::dead" || i.IPv4.String() != "192.0.2.7" {
		t.Errorf("got %+v, %v", i, err)
	}
}

// A virtual address that moves from host to host is valid for ever, the host's own
// may be DHCP's. What counts is which one the kernel sends from.
func TestAddressIsTheOneThatTheKernelSendsFrom(t *testing.T) {
	lent := func(a *netlink.Addr) { a.ValidLft, a.PreferedLft = 86400, 86400 }
	const own, virtual = "172.30.0.11", "172.30.0.100"
	for _, tt := range []struct {
		name  string
		addrs []string // a "*" marks those with a lifetime
		via   string   // gateway of the default route; empty: there is none
		src   string   // that the route names
		want  string
	}{
		{"virtual address behind the own", []string{own + "/24*", virtual + "/32"}, "172.30.0.1", own, own},
		{"virtual address before the own", []string{virtual + "/32", own + "/24*"}, "172.30.0.1", own, own},
		{"no source in the route", []string{virtual + "/32", own + "/24*"}, "172.30.0.1", "", own},
		{"virtual address of the same subnet", []string{virtual + "/24", own + "/24*"}, "172.30.0.1", own, own},
		{"two addresses for ever", []string{own + "/24", virtual + "/32"}, "172.30.0.1", "", own},
		{"no default route", []string{virtual + "/32", own + "/24*"}, "", "", own},
		{"gateway in the second subnet", []string{virtual + "/24", "172.31.0.11/24*"}, "172.31.0.1", "", "172.31.0.11"},
		{"IPv6", []string{"2001:db8:1::100/128", "2001:db8:1::11/64*"}, "2001:db8:1::fe", "", "2001:db8:1::11"},
		{"IPv6 with a source in the route", []string{"2001:db8:1::100/128", "2001:db8:1::11/128*"}, "2001:db8:1::fe", "2001:db8:1::11", "2001:db8:1::11"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := namespace(t)
			eth0 := n.link("eth0")
			for _, a := range tt.addrs {
				if cidr, isLent := strings.CutSuffix(a, "*"); isLent {
					n.addr(eth0, cidr, lent)
				} else {
					n.addr(eth0, a, nil)
				}
			}
			ipv6 := netip.MustParseAddr(tt.want).Is6()
			if tt.via != "" {
				all := map[bool]string{false: "0.0.0.0/0", true: "::/0"}[ipv6]
				_, to, _ := net.ParseCIDR(all)
				n.must("add default route", netlink.RouteAdd(&netlink.Route{Dst: to, Gw: net.ParseIP(tt.via), Src: net.ParseIP(tt.src), LinkIndex: eth0.Attrs().Index, Flags: int(netlink.FLAG_ONLINK)}))
			}
			i, err := Choose(Options{Iface: []string{"eth0"}, NeedIPv4: !ipv6, NeedIPv6: ipv6})
			n.must("choose", err)
			if got := map[bool]netip.Addr{false: i.IPv4, true: i.IPv6}[ipv6]; got.String() != tt.want {
				n.Errorf("chose %s, want %s", got, tt.want)
			}
		})
	}
}

func TestContainerLinksAreKnownByName(t *testing.T) {
	for name, want := range map[string]bool{
		"lo": true, "cni0": true, "veth0a1b2c3": true, "flannel0": true, "flannel.1": true, "flannel-v6.1": true, "docker0": true, "docker_gwbridge": true,
		"br-0123456789ab": true, "cali12345": true, "cilium_host": true, "virbr0": true, "kube-ipvs0": true,
		"br-lan": false, "br-0123456789a": false, "br0": false, "eth0": false, "enp3s0": false, "bond0": false, "wg0": false, "lo1": false, "vxlan0": false,
	} {
		if got := containerLink(name); got != want {
			t.Errorf("%s: got %t, want %t", name, got, want)
		}
	}
}
