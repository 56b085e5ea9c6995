package keep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

func TestRoutesAreThoseOfStockFlannel(t *testing.T) {
	each(t, func(n *node, f family) {
		want := []Route{n.direct(f, 2), n.tunnelled(f, 3), {Dst: f.subnet(4), Dev: "flannel.1"}}
		n.must(n.open(n.config()).Set(want))
		ours := n.routes()
		for _, r := range want {
			n.must(netlink.RouteDel(r.stock()), netlink.RouteAdd(r.stock()))
		}
		n.has(ours)
		if len(ours) != len(want) {
			n.Errorf("%d routes, want %d", len(ours), len(want))
		}
	})
}

// TestRestartThatChangesNothingWritesNothing: neither after a run of ours nor
// after one of stock flannel, nor with the routes in another order.
func TestRestartThatChangesNothingWritesNothing(t *testing.T) {
	each(t, func(n *node, f family) {
		var want []Route
		for i := 2; i < 50; i += 2 {
			want = append(want, n.direct(f, i), n.tunnelled(f, i+1))
		}
		table := n.begin(n.config())
		n.must(table.Set(want), table.Close())
		n.must(netlink.RouteReplace(want[0].stock()), netlink.RouteReplace(want[1].stock()))

		before := n.routes()
		m := n.monitor()
		slices.Reverse(want)
		table = n.open(n.config())
		n.must(table.Set(want))
		n.run(table)
		n.must(table.Set(want))
		if changes := m.seen(); len(changes) != 0 {
			n.Errorf("a restart changed %v", changes)
		}
		n.has(before)
		if len(before) != len(want) {
			n.Errorf("%d routes, want %d", len(before), len(want))
		}
	})
}

// TestStaleRoutesAreRemovedAndForeignOnesStay: the first Set removes what an
// earlier run left, and nothing else.
func TestStaleRoutesAreRemovedAndForeignOnesStay(t *testing.T) {
	each(t, func(n *node, f family) {
		stale := []Route{n.direct(f, 2), n.tunnelled(f, 3)}
		kept := n.tunnelled(f, 4)
		longer, err := f.subnet(9).Addr().Prefix(f.subnet(9).Bits() + 2)
		n.must(err)
		shorter, err := f.subnet(64).Addr().Prefix(f.subnet(64).Bits() - 2)
		n.must(err)
		foreign := []*netlink.Route{
			with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Priority = 77 }),
			with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Table = 100 }),
			with(n.direct(f, 4).stock(), func(r *netlink.Route) { r.Priority = 2000 }),
			with(n.direct(f, 5).stock(), func(r *netlink.Route) { r.Protocol = unix.RTPROT_STATIC }),
			with(n.tunnelled(f, 6).stock(), func(r *netlink.Route) { r.Priority = 5 }),
			{Dst: ipNet(f.subnet(7)), LinkIndex: n.eth0.Attrs().Index},
			{Dst: ipNet(f.subnet(8)), Type: unix.RTN_BLACKHOLE},
			with(Route{Dst: longer, Via: f.gateway, Dev: "eth0"}.stock(), func(r *netlink.Route) { r.Protocol = unix.RTPROT_BGP }),
			with(Route{Dst: shorter, Via: f.gateway, Dev: "eth0"}.stock(), func(r *netlink.Route) { r.Protocol = unix.RTPROT_BGP }),
			{Dst: ipNet(netip.PrefixFrom(f.far, f.far.BitLen())), Gw: f.gateway.AsSlice()},
			{Dst: ipNet(f.subnet(10)), MultiPath: []*netlink.NexthopInfo{
				{LinkIndex: n.eth0.Attrs().Index, Gw: f.gateway.AsSlice()}, {LinkIndex: n.eth0.Attrs().Index, Gw: f.gateway2.AsSlice()}}},
		}
		for _, r := range append(stale, kept) {
			n.must(netlink.RouteAdd(r.stock()))
		}
		for _, r := range foreign {
			n.must(netlink.RouteAdd(r))
		}
		gone := f.lines(stale...)
		want := slices.DeleteFunc(n.routes(), func(line string) bool { return slices.Contains(gone, line) })
		table := n.open(n.config())
		m := n.monitor()
		n.must(table.Set([]Route{kept}))
		n.has(want)
		changes := m.seen()
		slices.Sort(changes)
		if want := []string{"del " + stale[0].Dst.String(), "del " + stale[1].Dst.String()}; !slices.Equal(changes, want) {
			n.Errorf("changes %v, want %v", changes, want)
		}
	})
}

// TestRoutesThatOthersMakeLaterAreNotOurs: Ours concerns only what existed
// when the table was opened.
func TestRoutesThatOthersMakeLaterAreNotOurs(t *testing.T) {
	each(t, func(n *node, f family) {
		table := n.open(n.config())
		n.must(table.Set([]Route{n.direct(f, 2)}))
		n.must(netlink.RouteAdd(n.tunnelled(f, 3).stock()))
		n.must(table.Set(nil))
		n.has(f.lines(n.tunnelled(f, 3)))
	})
}

// TestForeignRouteInThePlaceOfOursIsReplaced: afterwards there is one route to
// the subnet, whatever was there.
func TestForeignRouteInThePlaceOfOursIsReplaced(t *testing.T) {
	type hops = []*netlink.NexthopInfo
	for _, tt := range []struct {
		name string
		make func(n *node, f family) error
	}{
		{"another gateway", func(n *node, f family) error {
			return netlink.RouteAdd(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Gw = f.gateway2.AsSlice() }))
		}},
		{"another device", func(n *node, f family) error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.vtep.Attrs().Index})
		}},
		{"no gateway", func(n *node, f family) error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.eth0.Attrs().Index})
		}},
		{"a tunnel, of another program", func(n *node, f family) error {
			return netlink.RouteAdd(with(n.tunnelled(f, 2).stock(), func(r *netlink.Route) { r.Protocol = unix.RTPROT_STATIC }))
		}},
		{"blackhole", func(n *node, f family) error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), Type: unix.RTN_BLACKHOLE})
		}},
		{"several next hops", func(n *node, f family) error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), MultiPath: hops{
				{LinkIndex: n.eth0.Attrs().Index, Gw: f.gateway.AsSlice()}, {LinkIndex: n.eth0.Attrs().Index, Gw: f.gateway2.AsSlice()}}})
		}},
		{"a second one behind it", func(n *node, f family) error {
			return errors.Join(netlink.RouteAdd(n.direct(f, 2).stock()),
				netlink.RouteAppend(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Gw = f.gateway2.AsSlice() })))
		}},
		{"a second one before it", func(n *node, f family) error {
			return errors.Join(
				netlink.RouteAdd(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Gw = f.gateway2.AsSlice() })),
				netlink.RouteAppend(n.direct(f, 2).stock()))
		}},
		{"two devices", func(n *node, f family) error {
			return errors.Join(
				netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.vtep.Attrs().Index}),
				netlink.RouteAppend(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.eth0.Attrs().Index}))
		}},
		{"one that deletes the same", func(n *node, f family) error {
			return errors.Join(netlink.RouteAdd(n.direct(f, 2).stock()),
				netlink.RouteAppend(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.eth0.Attrs().Index}))
		}},
		{"three", func(n *node, f family) error {
			return errors.Join(
				netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.vtep.Attrs().Index}),
				netlink.RouteAppend(n.tunnelled(f, 2).stock()),
				netlink.RouteAppend(&netlink.Route{Dst: ipNet(f.subnet(2)), LinkIndex: n.eth0.Attrs().Index}))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			each(t, func(n *node, f family) {
				n.must(tt.make(n, f))
				table := n.open(n.config())
				n.must(table.Set([]Route{n.direct(f, 2)}))
				n.has(f.lines(n.direct(f, 2)))

				// And again while Run restores it.
				n.run(table)
				n.unseen(table, func() error {
					return errors.Join(netlink.RouteDel(n.direct(f, 2).stock()), tt.make(n, f))
				})
				n.eventually("only our route exists", func() bool {
					return slices.Equal(n.routes(), f.lines(n.direct(f, 2)))
				})
			})
		})
	}
}

// TestRightRouteOfAnotherProgramIsUsedAndLeft: it is not written, nor removed
// when it is no longer wanted.
func TestRightRouteOfAnotherProgramIsUsedAndLeft(t *testing.T) {
	each(t, func(n *node, f family) {
		n.must(netlink.RouteAdd(with(n.direct(f, 2).stock(), func(r *netlink.Route) { r.Protocol = unix.RTPROT_STATIC })))
		before := n.routes()
		m := n.monitor()
		table := n.open(n.config())
		n.must(table.Set([]Route{n.direct(f, 2)}), table.Set(nil))
		if changes := m.seen(); len(changes) != 0 {
			n.Errorf("changes %v", changes)
		}
		n.has(before)
		// As soon as it has to be changed, it is ours.
		n.must(table.Set([]Route{n.tunnelled(f, 2)}))
		n.has(f.lines(n.tunnelled(f, 2)))
		n.must(table.Set(nil))
		n.has(nil)
	})
}

// TestMoveIsOneReplacement: a monitor sees nothing but new routes.
func TestMoveIsOneReplacement(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(fmt.Sprintf("running %t", running), func(t *testing.T) {
			each(t, func(n *node, f family) {
				table := n.open(n.config())
				if running {
					n.run(table)
				}
				n.must(table.Set([]Route{n.direct(f, 2), n.direct(f, 3)}))
				m := n.monitor()
				for _, r := range []Route{
					n.tunnelled(f, 2),                                // to another device
					{Dst: f.subnet(2), Dev: "flannel.1"},             // without a gateway
					{Dst: f.subnet(2), Via: f.gateway2, Dev: "eth0"}, // and with one again
					n.direct(f, 2),                                   // to another gateway
				} {
					n.must(table.Set([]Route{r, n.direct(f, 3)}))
					n.has(f.lines(r, n.direct(f, 3)))
					changes := m.seen()
					if f.number == netlink.FAMILY_V6 && r.OnLink {
						gateway := netip.PrefixFrom(r.Via, 128).String() // see retryOnLink
						if !slices.Contains(changes, "del "+gateway) {
							n.Errorf("move to %s: %v", r, changes)
						}
						changes = slices.DeleteFunc(changes, func(c string) bool { return c[4:] == gateway })
					}
					if !slices.Equal(changes, []string{"new " + r.Dst.String()}) {
						n.Errorf("move to %s: %v", r, changes)
					}
				}
			})
		})
	}
}

func TestRoutesThatFailAreReportedAndTheRestIsWritten(t *testing.T) {
	each(t, func(n *node, f family) {
		other := families[0].network
		if f.number == netlink.FAMILY_V4 {
			other = families[1].network
		}
		n.must(netlink.LinkSetDown(n.vtep))
		good := []Route{n.direct(f, 2), n.direct(f, 11)}
		table := n.open(n.config())
		err := table.Set([]Route{
			{Dst: f.subnet(8), Via: f.far, Dev: "eth0"},
			good[0],
			{Dst: f.subnet(3), Via: f.gateway, Dev: "eth9"},
			n.tunnelled(f, 4),
			{Dst: f.subnet(5), Via: other.Addr(), Dev: "eth0"},
			good[1],
			{Dst: f.subnet(11), Via: f.gateway2, Dev: "eth0"}, // a second time
			{Dst: f.subnet(2), Via: f.gateway.WithZone(""), Dev: "eth0"},
		})
		for _, want := range []struct {
			errno error
			text  string
		}{
			{nil, fmt.Sprintf("set route %s via %s dev eth9: interface eth9 is gone", f.subnet(3), f.gateway)},
			{unix.ENETDOWN, "dev flannel.1 onlink: network is down"},
			{nil, "are of different address families"},
			{nil, "the peer's address " + f.far.String() + " is in no subnet of eth0"},
			{nil, fmt.Sprintf("another route to this destination is wanted: %s", good[1])},
		} {
			if !slices.ContainsFunc(table.failures(), func(err error) bool {
				return strings.Contains(err.Error(), want.text) && (want.errno == nil || errors.Is(err, want.errno))
			}) {
				n.Errorf("no failure with %q (%v) in\n%v", want.text, want.errno, err)
			}
		}
		if n := len(table.failures()); n != 5 {
			t.Errorf("%d failures:\n%v", n, err)
		}
		n.has(f.lines(good...))
	})
}

// TestFailureLeavesTheOldRoute: as long as the new one cannot be written.
func TestFailureLeavesTheOldRoute(t *testing.T) {
	each(t, func(n *node, f family) {
		table := n.open(n.config())
		n.must(table.Set([]Route{n.direct(f, 2)}))
		far := Route{Dst: f.subnet(2), Via: f.far, Dev: "eth0"}
		if err := table.Set([]Route{far}); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			n.Errorf("error %v", err)
		}
		n.has(f.lines(n.direct(f, 2)))
		// It is still ours, and is removed once it is no longer wanted.
		n.must(table.Set(nil))
		n.has(nil)
	})
}

// TestForeignRouteThatStandsAgainstAFailureStays: it was never ours.
func TestForeignRouteThatStandsAgainstAFailureStays(t *testing.T) {
	each(t, func(n *node, f family) {
		foreign := Route{Dst: f.subnet(2), Dev: "eth0"}
		n.must(netlink.RouteAdd(foreign.stock()))
		table := n.open(n.config())
		if err := table.Set([]Route{{Dst: f.subnet(2), Via: f.far, Dev: "eth0"}}); err == nil {
			n.Error("no error")
		}
		n.must(table.Set(nil))
		n.has(f.lines(foreign))
	})
}

// TestTunnelIsChosenAgainstTheRouteOfTheWholeNetwork: as on a node that reaches
// some peers in user space, where the network leads into another device.
func TestTunnelIsChosenAgainstTheRouteOfTheWholeNetwork(t *testing.T) {
	each(t, func(n *node, f family) {
		n.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(f.network), LinkIndex: n.eth0.Attrs().Index}))
		before := n.routes()
		table := n.open(n.config())
		n.must(table.Set([]Route{n.tunnelled(f, 2), n.tunnelled(f, 3)}))
		want := slices.Concat(before, f.lines(n.tunnelled(f, 2), n.tunnelled(f, 3)))
		slices.Sort(want)
		n.has(want)
		n.must(table.Set(nil))
		n.has(before)
	})
}

// TestKeeperOpensWhereThereAreNoRoutes: the kernel then has no table main.
func TestKeeperOpensWhereThereAreNoRoutes(t *testing.T) {
	ns := netlabtest.Namespace(t, "node")
	if err := ns.Do(func() error {
		k, err := Open((&node{}).config())
		if err != nil {
			return err
		}
		if !k.Set(State{}) {
			t.Error("not all was done")
		}
		return k.Close()
	}); err != nil {
		t.Fatal(err)
	}
}
