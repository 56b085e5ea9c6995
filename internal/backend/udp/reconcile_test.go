package udp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// running opens and runs a backend in the namespace until the test ends.
func running(t *testing.T, cfg Config) (*testkit.Log, netlink.Link) {
	t.Helper()
	out := new(testkit.Log)
	cfg.Logger = out.Logger()
	b, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, b.Close()); err != nil {
			t.Error(err)
		}
	})
	return out, flannel0(t)
}

func flannel0(t *testing.T) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName("flannel0")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func prefix(s string) *net.IPNet { return ipNet(netip.MustParsePrefix(s)) }

// TestWhatIsTakenFromTheDeviceIsPutBack: each case takes one thing away, and the
// device is soon what it was, which the log says once.
func TestWhatIsTakenFromTheDeviceIsPutBack(t *testing.T) {
	route := func(dev netlink.Link, dst string) *netlink.Route {
		return &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: prefix(dst)}
	}
	for _, tt := range []struct {
		name string
		take func(dev netlink.Link) error
		log  string
	}{
		{"IPv4 route", func(dev netlink.Link) error { return netlink.RouteDel(route(dev, "10.5.0.0/16")) }, "now=\"route 10.5.0.0/16\""},
		{"IPv6 route", func(dev netlink.Link) error { return netlink.RouteDel(route(dev, "fd00:5::/32")) }, "now=\"route fd00:5::/32\""},
		// The kernel takes all IPv4 routes of an interface away with its last
		// address, without telling.
		{"IPv4 address", func(dev netlink.Link) error {
			return netlink.AddrDel(dev, &netlink.Addr{IPNet: prefix("10.5.1.0/32")})
		}, "address 10.5.1.0/32, route 10.5.0.0/16"},
		{"IPv6 address", func(dev netlink.Link) error {
			return netlink.AddrDel(dev, &netlink.Addr{IPNet: prefix("fd00:5:1::/128")})
		}, "address fd00:5:1::/128"},
		{"MTU, lower", func(dev netlink.Link) error { return netlink.LinkSetMTU(dev, 1400) }, "MTU 1472"},
		{"MTU, higher", func(dev netlink.Link) error { return netlink.LinkSetMTU(dev, 9000) }, "MTU 1472"},
		// With it all of IPv6.
		{"MTU, too low for IPv6", func(dev netlink.Link) error { return netlink.LinkSetMTU(dev, 1000) }, "MTU 1472"},
		{"up state", netlink.LinkSetDown, "up, address fd00:5:1::/128, route 10.5.0.0/16, route fd00:5::/32"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(*netlab.Namespace) {
				out, dev := running(t, config())
				addrs, routes := settings(t)
				testkit.Must(t, tt.take(dev))
				testkit.Eventually(t, "the log says what was put back", func() bool { return strings.Contains(out.String(), tt.log) })
				testkit.Eventually(t, "the device is what it was", func() bool {
					a, r := settings(t)
					attrs := flannel0(t).Attrs()
					return slices.Equal(a, addrs) && slices.Equal(r, routes) && attrs.MTU == 1472 && attrs.Flags&net.FlagUp != 0
				})
				if text := out.String(); strings.Count(text, "put back") != 1 || strings.Contains(text, "level=WARN") {
					t.Errorf("log:\n%s", text)
				}
			})
		})
	}
}

func TestForeignAddressesAndRoutesOfTheDeviceStay(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		_, dev := running(t, config())
		testkit.Must(t,
			netlink.AddrAdd(dev, &netlink.Addr{IPNet: prefix("198.51.100.1/32")}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: prefix("203.0.113.0/24")}))
		addrs, routes := settings(t)
		if !slices.Contains(addrs, "198.51.100.1/32") || !slices.Contains(routes, "203.0.113.0/24") {
			t.Fatalf("addresses %v, routes %v", addrs, routes)
		}
		testkit.Must(t, netlink.AddrDel(dev, &netlink.Addr{IPNet: prefix("10.5.1.0/32")}))
		testkit.Eventually(t, "the address is back beside the foreign ones", func() bool {
			a, r := settings(t)
			return slices.Equal(a, addrs) && slices.Equal(r, routes)
		})
	})
}

// TestForeignRouteInTheWayIsToldOnceAndLeftAlone: as soon as it goes, ours is
// back.
func TestForeignRouteInTheWayIsToldOnceAndLeftAlone(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		out, dev := running(t, config())
		eth0, err := netlink.LinkByName("eth0")
		testkit.Must(t, err)
		foreign := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: prefix("10.5.0.0/16"), Scope: netlink.SCOPE_LINK}
		testkit.Must(t, netlink.RouteReplace(foreign))
		testkit.Eventually(t, "the log says what to do", func() bool {
			return strings.Contains(out.String(), "another route to it exists")
		})
		// Something else of the device changes, and is looked after.
		testkit.Must(t, netlink.RouteDel(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: prefix("fd00:5::/32")}))
		testkit.Eventually(t, "the other route is back", func() bool {
			_, routes := settings(t)
			return slices.Contains(routes, "fd00:5::/32")
		})
		there, err := netlink.RouteListFiltered(netlink.FAMILY_V4, foreign, netlink.RT_FILTER_DST)
		testkit.Must(t, err)
		if len(there) != 1 || there[0].LinkIndex != foreign.LinkIndex {
			t.Errorf("routes to 10.5.0.0/16: %v", there)
		}
		if n := strings.Count(out.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings in\n%s", n, out)
		}
		testkit.Must(t, netlink.RouteDel(foreign))
		testkit.Eventually(t, "our route is back", func() bool {
			_, routes := settings(t)
			return slices.Contains(routes, "10.5.0.0/16")
		})
	})
}

// TestAddressesComeBackWithIPv6: it is turned off on the device, and on again.
func TestAddressesComeBackWithIPv6(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		out, _ := running(t, config())
		addrs, routes := settings(t)
		const file = "/proc/sys/net/ipv6/conf/flannel0/disable_ipv6"
		testkit.Must(t, os.WriteFile(file, []byte("1"), 0))
		testkit.Eventually(t, "the log says what to do", func() bool { return strings.Contains(out.String(), "IPv6 is turned off here") })
		testkit.Must(t, os.WriteFile(file, []byte("0"), 0))
		testkit.Eventually(t, "the device is what it was", func() bool {
			a, r := settings(t)
			return slices.Equal(a, addrs) && slices.Equal(r, routes)
		})
	})
}

// TestDeletedDeviceEndsTheBackend: who deletes it is not fought.
func TestDeletedDeviceEndsTheBackend(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		b := open(t, config())
		done := make(chan error, 1)
		go func() { done <- b.Run(context.Background()) }()
		testkit.Must(t, netlink.LinkDel(flannel0(t)))
		testkit.Eventually(t, "Run has ended", func() bool { return len(done) == 1 })
		if err := <-done; err == nil {
			t.Error("Run ended without an error")
		}
		if _, err := netlink.LinkByName("flannel0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("flannel0 afterwards: %v", err)
		}
	})
}

// TestOpenRefusesALeftTUN: a persistent device may be anybody's, so it is named
// together with what to do about it.
func TestOpenRefusesALeftTUN(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel0"
		left := &netlink.Tuntap{LinkAttrs: attrs, Mode: unix.IFF_TUN, Flags: unix.IFF_NO_PI}
		testkit.Must(t, netlink.LinkAdd(left))
		b, err := Open(config())
		if err == nil {
			b.Close()
			t.Fatal("opened")
		}
		if !strings.Contains(err.Error(), "(persistent TUN)") || !strings.Contains(err.Error(), "twilld --cleanup") {
			t.Errorf("%v", err)
		}
		testkit.Must(t, netlink.LinkDel(flannel0(t)))
		open(t, config())
	})
}
