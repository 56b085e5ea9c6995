package underlay

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestInterfaceStaysAsLongAsItHasWhatItHad(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	eth1 := n.link("eth1", "198.51.100.1/24")
	n.route("0.0.0.0/0", "192.0.2.254", eth0, 100)
	o := Options{NeedIPv4: true, NeedIPv6: true}
	was, err := Choose(Options{NeedIPv4: true})
	n.must("choose", err)

	stays := func(what string, change func(*Interface)) {
		t.Helper()
		want := was
		change(&want)
		now, err := Stay(was, o)
		if err != nil || now != want {
			t.Errorf("%s: got %+v, %v, want %+v", what, now, err, want)
		}
		was = now
	}
	goes := func(what, want string) {
		t.Helper()
		now, err := Stay(was, o)
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %+v, %v, want %s", what, now, err, want)
		}
	}

	stays("nothing has changed", func(*Interface) {})
	n.addr(eth0, "192.0.2.9/24", nil)
	stays("another address beside it", func(*Interface) {})
	n.route("0.0.0.0/0", "198.51.100.254", eth1, 10)
	stays("a better default route elsewhere", func(*Interface) {})
	n.must("set MTU", netlink.LinkSetMTU(eth0, 1400))
	stays("a new MTU", func(i *Interface) { i.MTU = 1400 })
	n.addr(eth0, "2001:db8:1::1/64", nil)
	stays("an address of the other family", func(i *Interface) {
		i.IPv6 = netip.MustParseAddr("2001:db8:1::1")
		i.PublicIPv6 = i.IPv6
	})

	n.must("set eth0 down", netlink.LinkSetDown(eth0))
	goes("down", "interface eth0 is down; set it up with 'ip link set eth0 up'")
	n.must("set eth0 up", netlink.LinkSetUp(eth0))
	goes("without IPv6, which the kernel flushed", "interface eth0 no longer has the address 2001:db8:1::1")
	n.addr(eth0, "2001:db8:1::1/64", nil)
	stays("all is back", func(*Interface) {})

	remove(n, eth0, "192.0.2.1/24")
	goes("without its address", "interface eth0 no longer has the address 192.0.2.1")
	n.must("rename eth0", netlink.LinkSetName(eth0, "lan0"))
	goes("renamed", "interface eth0 was renamed to lan0")
	n.must("delete eth0", netlink.LinkDel(eth0))
	goes("deleted", "interface eth0 is gone")
}

func TestPublicAddressOfTheOptionsStays(t *testing.T) {
	n := namespace(t)
	eth0 := n.link("eth0", "192.0.2.1/24")
	o := Options{Iface: []string{"eth0"}, PublicIP: netip.MustParseAddr("203.0.113.1"), PublicIPv6: netip.MustParseAddr("2001:db8:ff::1"), NeedIPv4: true}
	was, err := Choose(o)
	n.must("choose", err)
	n.addr(eth0, "2001:db8:1::1/64", nil)
	o.NeedIPv6 = true
	now, err := Stay(was, o)
	if err != nil || now.PublicIP.String() != "203.0.113.1" || now.IPv6.String() != "2001:db8:1::1" || now.PublicIPv6.String() != "2001:db8:ff::1" {
		t.Errorf("got %+v, %v", now, err)
	}
}

// While the daemon runs its own device is there, under whatever name.
func TestOwnDeviceIsNeverChosen(t *testing.T) {
	n := namespace(t)
	n.link("pods0", "10.5.1.0/32")
	n.link("eth0", "192.0.2.1/24")
	i, err := Choose(Options{IfaceRegex: []string{".*"}, Own: "pods0", NeedIPv4: true})
	if err != nil || i.Name != "eth0" {
		t.Errorf("got %+v, %v, want eth0", i, err)
	}
	if i, err := Choose(Options{Iface: []string{"pods0"}, Own: "pods0", NeedIPv4: true}); err == nil {
		t.Errorf("by its name: got %+v", i)
	}
}

func TestInterfaceIsTheSameWhateverLedToIt(t *testing.T) {
	i := Interface{Name: "eth0", Index: 2, MTU: 1500, IPv4: netip.MustParseAddr("192.0.2.1"), Why: "default route"}
	o := i
	o.Why = "--iface=eth0"
	if !i.Equal(o) {
		t.Error("Equal compares the reason")
	}
	o.MTU = 1400
	if i.Equal(o) {
		t.Error("Equal ignores the MTU")
	}
	if got, want := i.String(), "eth0 (192.0.2.1, MTU 1500)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func remove(n *namespaced, l netlink.Link, cidr string) {
	n.Helper()
	ip, ipnet, err := net.ParseCIDR(cidr)
	n.must("parse "+cidr, err)
	ipnet.IP = ip
	n.must("delete "+cidr, netlink.AddrDel(l, &netlink.Addr{IPNet: ipnet}))
}
