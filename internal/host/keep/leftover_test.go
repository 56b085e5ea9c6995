package keep

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// cluster is a network of IPv4 pods as a node of it has them: 10.N.0.0/16, of
// which the node has 10.N.1.0/24.
type cluster int

func (c cluster) subnet(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(c), byte(i), 0}), 24)
}

func (c cluster) config(record string) Config {
	return Config{
		Networks: []netip.Prefix{netip.PrefixFrom(c.subnet(0).Addr(), 16)}, Subnets: []netip.Prefix{c.subnet(1)},
		Owned: regexp.MustCompile(`^flannel\.[0-9]+$`), Record: record, Logger: slog.New(slog.DiscardHandler),
	}
}

// state has flannel.1, peer 2 through it, peer 3 on the link, and the blackhole of
// the own subnet.
func (c cluster) state(n *node) State {
	mac := MAC{2, 0, 0, 0, 0, 2}
	return State{
		Links: []Link{{
			Name: "flannel.1", MTU: 1450, MAC: MAC{2, 0, 0, 0, 0, 1}, Addrs: []netip.Addr{c.subnet(1).Addr()},
			VXLAN: &VXLAN{VNI: 1, Port: 8472, Underlay: n.eth0.Attrs().Index, UnderlayName: "eth0", Local: netip.MustParseAddr("192.0.2.1")},
		}},
		FDB:    []FDB{{Dev: "flannel.1", MAC: mac, Dst: netip.MustParseAddr("192.0.2.2")}},
		Neighs: []Neigh{{Dev: "flannel.1", IP: c.subnet(2).Addr(), MAC: mac}},
		Routes: []Route{
			{Dst: c.subnet(2), Via: c.subnet(2).Addr(), Dev: "flannel.1", OnLink: true},
			{Dst: c.subnet(3), Via: netip.MustParseAddr("192.0.2.3"), Dev: "eth0"},
			{Dst: c.subnet(1), Blackhole: true},
		},
	}
}

// run is a run of the cluster that ends, as by SIGKILL.
func (c cluster) run(n *node, record string) {
	n.Helper()
	k, err := Open(c.config(record))
	n.must(err, k.Ensure(c.state(n).Links...))
	if !k.Set(c.state(n)) {
		n.Error("not all was done")
	}
	n.must(k.Close())
}

// of are the lines of what the kernel has of a cluster: routes, and addresses,
// neighbours and FDB entries of flannel.1.
func (c cluster) of(n *node) (all []string) {
	n.Helper()
	network := c.config("").Networks[0]
	list, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	n.must(err)
	for _, r := range list {
		if network.Overlaps(prefix(r.Dst)) {
			all = append(all, "route "+r.Dst.String())
		}
	}
	dev, err := netlink.LinkByName("flannel.1")
	if err != nil {
		return all
	}
	addrs, err := netlink.AddrList(dev, netlink.FAMILY_V4)
	n.must(err)
	for _, a := range addrs {
		if addr, _ := netip.AddrFromSlice(a.IP); network.Contains(addr.Unmap()) {
			all = append(all, "address "+a.IPNet.String())
		}
	}
	neighs, err := netlink.NeighList(dev.Attrs().Index, netlink.FAMILY_V4)
	n.must(err)
	for _, e := range neighs {
		if addr, _ := netip.AddrFromSlice(e.IP); network.Contains(addr.Unmap()) && e.State == unix.NUD_PERMANENT {
			all = append(all, "neighbour "+e.IP.String())
		}
	}
	slices.Sort(all)
	return all
}

// TestNothingOfAFormerNetworkIsLeft: the network was changed while the daemon was
// down. The device stays, everything else of the former network is removed, since a
// host of the LAN may have its addresses now.
func TestNothingOfAFormerNetworkIsLeft(t *testing.T) {
	inside(t, func(n *node) {
		record := filepath.Join(t.TempDir(), "record")
		former, now, other := cluster(5), cluster(6), cluster(7)
		former.run(n, record)
		if got := len(former.of(n)); got != 5 {
			t.Fatalf("of the former network there are %v", former.of(n))
		}
		before, err := netlink.LinkByName("flannel.1")
		n.must(err)
		// An operator's, of that network and of another.
		operators := with(Route{Dst: former.subnet(9), Via: netip.MustParseAddr("192.0.2.9"), Dev: "eth0"}.stock(), func(*netlink.Route) {})
		n.must(netlink.RouteAdd(operators), netlink.RouteAdd(&netlink.Route{Dst: ipNet(other.subnet(1)), Type: unix.RTN_BLACKHOLE, Priority: lastMetric}))

		now.run(n, record)
		if got := former.of(n); !slices.Equal(got, []string{"route 10.5.9.0/24"}) {
			t.Errorf("left of the former network: %v", got)
		}
		if got := now.of(n); len(got) != 5 {
			t.Errorf("of the network: %v", got)
		}
		if got := other.of(n); len(got) != 1 {
			t.Errorf("the blackhole route of another program is gone")
		}
		after, err := netlink.LinkByName("flannel.1")
		n.must(err)
		if after.Attrs().Index != before.Attrs().Index {
			t.Error("the device was replaced")
		}
		if r := reopened(t, record); len(r.networks) != 1 {
			t.Errorf("the record still has the networks %v", r.networks)
		}
	})
}

// TestCleanRemovesAllOfEarlierRuns: of more than one network, with without what an
// operator has changed since.
func TestCleanRemovesAllOfEarlierRuns(t *testing.T) {
	inside(t, func(n *node) {
		n.must(netlink.LinkDel(n.vtep))
		before := n.routes()
		record := filepath.Join(t.TempDir(), "record")
		former, now := cluster(5), cluster(6)
		former.run(n, record)
		// The later one could not remove what the former left.
		k, err := Open(now.config(record))
		n.must(err, k.record.add(currentNetworks(k.cfg), now.state(n).Routes), k.Close())
		out := new(testkit.Log)
		cfg := now.config(record)
		cfg.Logger = out.Logger()
		n.must(Clean("flannel0", cfg))
		n.has(before)
		if _, err := netlink.LinkByName("flannel.1"); err == nil {
			t.Error("flannel.1 is left")
		}
		for _, what := range []string{"device=flannel.1", "subnet=10.5.1.0/24", `route="10.5.3.0/24 via 192.0.2.3 dev eth0"`} {
			if !strings.Contains(out.String(), what) {
				t.Errorf("the log lacks %s:\n%s", what, out)
			}
		}
		n.must(Clean("flannel0", cfg))
		if strings.Count(out.String(), "removed") != 3 {
			t.Errorf("removed twice:\n%s", out)
		}
	})
}

// A TUN device may come from an earlier run, by its descriptors, with that run's routes.
func TestRoutesThroughATUNDeviceOfAnEarlierRunAreRemoved(t *testing.T) {
	inside(t, func(n *node) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel0"
		n.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
		peer, err := netlink.LinkByName("peer")
		n.must(err, netlink.LinkSetUp(peer)) // flannel0 has a carrier, as if a process had it open
		links := []Link{{Name: "flannel0", MTU: 1472}}
		var earlier, now []Route
		for _, f := range families {
			stays := Route{Dst: f.subnet(3), Dev: "flannel0"}
			earlier = append(earlier, Route{Dst: f.network, Dev: "flannel0"}, Route{Dst: f.subnet(2), Dev: "flannel0"}, stays)
			now = append(now, stays)
		}
		for _, routes := range [][]Route{earlier, now} {
			k, err := Open(n.config())
			n.must(err, k.Ensure(links...))
			if !k.Set(State{Links: links, Routes: routes}) {
				n.Error("not all was done")
			}
			n.must(k.Close())
			want := through(routes)
			has := slices.DeleteFunc(n.routes(), func(l string) bool { return !slices.Contains(through(earlier), l) })
			if !slices.Equal(has, want) {
				n.Errorf("routes\n%s\nwant\n%s", strings.Join(has, "\n"), strings.Join(want, "\n"))
			}
		}
	})
}

// through are the lines of routes, as many of the one family as of the other.
func through(routes []Route) (lines []string) {
	for i, f := range families {
		half := len(routes) / len(families)
		lines = append(lines, f.lines(routes[i*half:(i+1)*half]...)...)
	}
	slices.Sort(lines)
	return lines
}
