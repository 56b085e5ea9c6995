package keep

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// TestWhatIsRemovedIsRestored: each case removes routes, which are soon
// restored and logged.
func TestWhatIsRemovedIsRestored(t *testing.T) {
	for _, tt := range []struct {
		name string
		take func(n *node, f family) error
		only string // the family that it concerns; empty: both
	}{
		{"deleted", func(n *node, f family) error { return netlink.RouteDel(n.direct(f, 2).stock()) }, ""},
		{"replaced", func(n *node, f family) error {
			return netlink.RouteReplace(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Gw = f.gateway2.AsSlice() }))
		}, ""},
		{"replaced by another device", func(n *node, f family) error {
			return netlink.RouteReplace(&netlink.Route{Dst: netlab.IPNet(f.subnet(2)), LinkIndex: n.vtep.Attrs().Index})
		}, ""},
		{"beside another", func(n *node, f family) error {
			return netlink.RouteAppend(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Gw = f.gateway2.AsSlice() }))
		}, ""},
		{"all deleted", func(n *node, f family) error {
			var errs []error
			for i := 2; i < 40; i += 2 {
				errs = append(errs, netlink.RouteDel(n.direct(f, i).stock()), netlink.RouteDel(n.tunnelled(f, i+1).stock()))
			}
			return errors.Join(errs...)
		}, ""},
		// With it go its IPv6 addresses.
		{"device down and up", func(n *node, f family) error {
			return errors.Join(netlink.LinkSetDown(n.eth0), netlink.LinkSetUp(n.eth0),
				netlink.AddrReplace(n.eth0, address("2001:db8::1/64")))
		}, ""},
		// The kernel removes all IPv4 routes of a device with its last
		// address, without a notification.
		{"last address removed and added", func(n *node, f family) error {
			return errors.Join(netlink.AddrDel(n.eth0, address("192.0.2.1/24")), netlink.AddrAdd(n.eth0, address("192.0.2.1/24")))
		}, "IPv4"},
		{"last address of the tunnel removed", func(n *node, f family) error {
			return netlink.AddrDel(n.vtep, address("10.5.1.0/32"))
		}, "IPv4"},
		{"IPv6 turned off and on", func(n *node, f family) error {
			const file = "/proc/sys/net/ipv6/conf/flannel.1/disable_ipv6"
			return errors.Join(os.WriteFile(file, []byte("1"), 0), os.WriteFile(file, []byte("0"), 0))
		}, "IPv6"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(n *node, f family) {
				if tt.only != "" && tt.only != f.name {
					return
				}
				table, out := n.logged()
				var want []Route
				for i := 2; i < 40; i += 2 {
					want = append(want, n.direct(f, i), n.tunnelled(f, i+1))
				}
				n.must(table.Set(want))
				lines := f.lines(want...)
				n.has(lines)
				n.must(tt.take(n, f))
				n.eventually("the routes are back", func() bool {
					// Run may look while they cannot be written yet.
					said := strings.Contains(out.String(), "restored") || strings.Contains(out.String(), "complete again")
					return slices.Equal(n.routes(), lines) && said
				})
			})
		})
	}
}

// TestRunTakesNothingAwayBeforeTheFirstSet: which of the routes of an earlier run
// are to stay is not known yet.
func TestRunTakesNothingAwayBeforeTheFirstSet(t *testing.T) {
	each(t, func(n *node, f family) {
		want := []Route{n.direct(f, 2), n.direct(f, 3)}
		for _, r := range append(want, n.tunnelled(f, 4)) {
			n.must(netlink.RouteAdd(r.stock()))
		}
		before := n.routes()
		table := n.open(n.config())
		n.run(table)
		if _, err := table.look(); err != nil { // as Run does at its beginning
			n.Error(err)
		}
		n.has(before)
		// Meanwhile one is lost, of which Run takes no notice.
		n.must(netlink.RouteDel(want[1].stock()))
		m := n.monitor()
		n.must(table.Set(want))
		n.has(f.lines(want...))
		if changes := m.seen(); !slices.Equal(changes, []string{"new " + want[1].Dst.String(), "del " + f.subnet(4).String()}) {
			n.Errorf("changes %v", changes)
		}
	})
}

// TestForeignRoutesBesideOursAreLeftAlone: what others do beside the wanted
// routes is ignored.
func TestForeignRoutesBesideOursAreLeftAlone(t *testing.T) {
	each(t, func(n *node, f family) {
		table, out := n.logged()
		n.must(table.Set([]Route{n.direct(f, 2)}))
		foreign := []*netlink.Route{
			with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Priority = 5 }),
			with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Table = 100 }),
			n.tunnelled(f, 3).stock(),
		}
		for _, r := range foreign {
			n.must(netlink.RouteAdd(r))
		}
		before := n.routes()
		n.must(netlink.RouteDel(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Priority = f.metric })))
		n.eventually("our route is back beside them", func() bool { return slices.Equal(n.routes(), before) })
		if text := out.String(); strings.Contains(text, "level=WARN") {
			n.Errorf("log:\n%s", text)
		}
	})
}

// TestRouteComesWithItsDevice: a route that cannot be written is written as
// soon as possible, and logged once.
func TestRouteComesWithItsDevice(t *testing.T) {
	each(t, func(n *node, f family) {
		table, out := n.logged()
		n.must(netlink.LinkSetDown(n.vtep))
		if err := table.Set([]Route{n.direct(f, 2), n.tunnelled(f, 3)}); !errors.Is(err, unix.ENETDOWN) {
			n.Errorf("error %v", err)
		}
		n.has(f.lines(n.direct(f, 2)))
		n.must(netlink.LinkSetUp(n.vtep))
		n.eventually("the route is there", func() bool {
			return slices.Equal(n.routes(), f.lines(n.direct(f, 2), n.tunnelled(f, 3)))
		})
		if text := out.String(); strings.Count(text, "level=WARN") != 1 || !strings.Contains(text, "complete again") {
			n.Errorf("log:\n%s", text)
		}
	})
}

func TestRouteComesWithTheAddressThatReachesItsGateway(t *testing.T) {
	each(t, func(n *node, f family) {
		table, out := n.logged()
		far := Route{Dst: f.subnet(2), Via: f.far, Dev: "eth0"}
		if err := table.Set([]Route{far}); err == nil {
			n.Error("no error")
		}
		n.addr(n.eth0, "198.51.100.2/24")
		n.addr(n.eth0, "2001:db8:ffff::2/64")
		n.eventually("the route is there", func() bool { return slices.Equal(n.routes(), f.lines(far)) })
		n.must(netlink.AddrDel(n.eth0, address("198.51.100.2/24")), netlink.AddrDel(n.eth0, address("2001:db8:ffff::2/64")),
			netlink.RouteDel(far.stock()))
		n.eventually("the log says what is wrong", func() bool {
			return strings.Contains(out.String(), "the peer's address "+f.far.String()+" is in no subnet of eth0")
		})
		if text := out.String(); strings.Count(text, "level=WARN") != 1 {
			n.Errorf("log:\n%s", text)
		}
	})
}

// TestRouteThatIsRemovedRepeatedlyIsRestoredLessOften: it is restored at increasing
// intervals, which is logged once, and other routes are not affected.
func TestRouteThatIsRemovedRepeatedlyIsRestoredLessOften(t *testing.T) {
	f := families[0]
	inside(t, func(n *node) {
		table, out := n.logged()
		want := f.lines(n.direct(f, 2), n.direct(f, 3))
		n.must(table.Set([]Route{n.direct(f, 2), n.direct(f, 3)}))
		const times = 6
		atLeast := time.Duration(0)
		begin := time.Now()
		for i := range times {
			n.must(netlink.RouteReplace(n.tunnelled(f, 2).stock()))
			n.eventually("it is restored", func() bool { return slices.Equal(n.routes(), want) })
			if i > 0 {
				atLeast += min(firstRest<<(i-1), longestRest)
			}
		}
		if took := time.Since(begin); took < atLeast {
			n.Errorf("put back %d times in %v, want %v at least", times, took, atLeast)
		}
		table.mu.Lock()
		table.paces[routeKey{dst: f.subnet(2)}].rest = time.Hour
		table.mu.Unlock()
		n.must(netlink.RouteReplace(n.tunnelled(f, 2).stock()), netlink.RouteDel(n.direct(f, 3).stock()))
		n.eventually("the other route is back, but not the one that is removed repeatedly", func() bool {
			return slices.Equal(n.routes(), f.lines(n.tunnelled(f, 2), n.direct(f, 3)))
		})
		if text := out.String(); strings.Count(text, "keeps changing") != 1 || !strings.Contains(text, "10.5.2.0/24 via 192.0.2.2 dev eth0") {
			n.Errorf("log:\n%s", text)
		}
		// A route that is wanted elsewhere is written at once.
		elsewhere := Route{Dst: f.subnet(2), Via: f.gateway2, Dev: "eth0"}
		n.must(table.Set([]Route{n.direct(f, 3), elsewhere}))
		n.has(f.lines(elsewhere, n.direct(f, 3)))
	})
}

// TestChangesWithoutNotificationAreFound: so many others preceded them that
// the socket's buffer overflowed.
func TestChangesWithoutNotificationAreFound(t *testing.T) {
	each(t, func(n *node, f family) {
		table := n.open(n.config())
		n.run(table)
		want := []Route{n.direct(f, 2), n.tunnelled(f, 3)}
		n.must(table.Set(want))
		others := n.direct(f, 4).stock()
		n.unseen(table, func() error {
			var errs []error
			for range 2000 {
				errs = append(errs, netlink.RouteAdd(others), netlink.RouteDel(others))
			}
			return errors.Join(append(errs, netlink.RouteDel(want[0].stock()), netlink.RouteDel(want[1].stock()))...)
		})
		n.eventually("they are back", func() bool { return slices.Equal(n.routes(), f.lines(want...)) })
	})
}

// TestOwnChangesAreIgnored: otherwise each change of a lease would cost
// reading all routes.
func TestOwnChangesAreIgnored(t *testing.T) {
	each(t, func(n *node, f family) {
		table := n.open(n.config())
		m := n.monitor()
		// concerned evaluates the next change of the route, and skips others.
		concerned := func() bool {
			for {
				messages, missed := m.events.Next(time.Now().Add(testkit.Patience))
				if missed || messages == nil {
					n.Fatal("no change was announced")
				}
				for _, e := range messages {
					if dst, ok := destination(e.Data); ok && dst == f.subnet(2) {
						concerned, _, _ := table.concerned(make(map[int]bool), e)
						return concerned != 0
					}
				}
			}
		}
		n.must(table.Set([]Route{n.direct(f, 2)}))
		if concerned() {
			n.Error("a route of Set is looked at")
		}
		n.must(table.Set([]Route{{Dst: f.subnet(2), Via: f.gateway2, Dev: "eth0"}}))
		if concerned() {
			n.Error("a replacement of Set is looked at")
		}
		n.must(netlink.RouteReplace(n.direct(f, 2).stock()))
		if !concerned() {
			n.Error("the replacement of another is not looked at")
		}
	})
}

// TestSetAndRunWorkTogether: while one host's leases change, another program removes
// routes. In the end the last wanted routes exist.
func TestSetAndRunWorkTogether(t *testing.T) {
	each(t, func(n *node, f family) {
		table, _ := n.logged()
		var last []Route
		for round := range 100 {
			last = nil
			for i := 2; i < 30; i++ {
				switch r := n.direct(f, i); (i + round) % 3 {
				case 0:
					last = append(last, r)
				case 1:
					last = append(last, n.tunnelled(f, i))
				default: // it may not be there
					_ = netlink.RouteDel(r.stock())
				}
			}
			n.must(table.Set(last))
			_ = netlink.RouteDel(last[round%len(last)].stock())
		}
		n.eventually("the last wanted routes exist", func() bool { return slices.Equal(n.routes(), f.lines(last...)) })
	})
}

// A device may go down while its routes are written. That is not a failure: the look
// that follows sets it up.
func TestDeviceThatGoesDownMeanwhileIsNoFailure(t *testing.T) {
	inside(t, func(n *node) {
		n.must(netlink.LinkDel(n.vtep))
		c, out := cluster(5), new(testkit.Log)
		cfg := c.config("")
		cfg.Logger = out.Logger()
		k, err := Open(cfg)
		n.must(err)
		defer k.Close()
		n.must(k.Ensure(c.state(n).Links...))
		if !k.Set(c.state(n)) {
			n.Error("not all was done")
		}
		before := c.of(n)
		flannel1, err := netlink.LinkByName("flannel.1")
		n.must(err, netlink.LinkSetDown(flannel1))
		k.dirty = routes // the device was looked at before
		_, err = k.look()
		n.must(err)
		if k.dirty&routes == 0 {
			n.Error("the route would not be looked at again")
		}
		k.dirty = everything // as the notification says
		_, err = k.look()
		n.must(err)
		if got := c.of(n); !slices.Equal(got, before) {
			n.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
		}
		if text := out.String(); strings.Contains(text, "level=WARN") {
			n.Errorf("log:\n%s", text)
		}
	})
}
