package keep

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlwatch"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The tests here need root. Each has a namespace of its own, a node with
//
//	eth0       192.0.2.1/24, 2001:db8::1/64    a veth
//	flannel.1  10.5.1.0/32, fd00:5:1::/128     a VXLAN device
//
// Peer i has the subnets 10.5.i.0/24 and fd00:5:i::/64. It is reached by a plain
// route through eth0 (direct), or through flannel.1 (tunnelled).

func TestMain(m *testing.M) { netlabtest.Main(m) }

// family is what differs between IPv4 and IPv6.
type family struct {
	name              string
	number            int
	network           netip.Prefix
	gateway, gateway2 netip.Addr // on the link of eth0
	far               netip.Addr // not on a link
	metric            int        // the kernel's
}

var families = []family{
	{"IPv4", netlink.FAMILY_V4, netip.MustParsePrefix("10.5.0.0/16"),
		netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3"), netip.MustParseAddr("198.51.100.1"), 0},
	{"IPv6", netlink.FAMILY_V6, netip.MustParsePrefix("fd00:5::/32"),
		netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3"), netip.MustParseAddr("2001:db8:ffff::1"), 1024},
}

// subnet is that of peer i.
func (f family) subnet(i int) netip.Prefix {
	a := f.network.Addr().AsSlice()
	if len(a) == net.IPv4len {
		a[2] = byte(i)
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(a)), 24)
	}
	a[4], a[5] = byte(i>>8), byte(i)
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(a)), 64)
}

// node is the namespace of a test.
type node struct {
	*testing.T
	eth0, vtep netlink.Link
}

// inside runs f in a node.
func inside(t *testing.T, f func(n *node)) {
	t.Helper()
	netlabtest.Inside(t, func(*netlab.Namespace) {
		n := &node{T: t}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		n.eth0 = &netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}
		n.must(netlink.LinkAdd(n.eth0), netlink.LinkSetUp(n.eth0))
		wire, err := netlink.LinkByName("wire")
		n.must(err, netlink.LinkSetUp(wire))
		attrs.Name = "flannel.1"
		n.vtep = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472}
		n.must(netlink.LinkAdd(n.vtep), netlink.LinkSetUp(n.vtep))
		n.addr(n.eth0, "192.0.2.1/24")
		n.addr(n.eth0, "2001:db8::1/64")
		n.addr(n.vtep, "10.5.1.0/32")
		n.addr(n.vtep, "fd00:5:1::/128")
		f(n)
	})
}

// each runs f in a node for each family.
func each(t *testing.T, f func(n *node, f family)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) { inside(t, func(n *node) { f(n, fam) }) })
	}
}

func (n *node) must(errs ...error) {
	n.Helper()
	if err := errors.Join(errs...); err != nil {
		n.Fatal(err)
	}
}

// addr adds an address to a device.
func (n *node) addr(dev netlink.Link, cidr string) {
	n.Helper()
	n.must(netlink.AddrAdd(dev, address(cidr)))
}

func address(cidr string) *netlink.Addr {
	p := netip.MustParsePrefix(cidr)
	a := &netlink.Addr{IPNet: netlab.IPNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// direct is the route to peer i through eth0.
func (n *node) direct(f family, i int) Route {
	return Route{Dst: f.subnet(i), Via: f.gateway, Dev: "eth0"}
}

// tunnelled is the route to peer i through flannel.1.
func (n *node) tunnelled(f family, i int) Route {
	return Route{Dst: f.subnet(i), Via: f.subnet(i).Addr(), Dev: "flannel.1", OnLink: true}
}

// stock is the route as flannel makes it, with github.com/vishvananda/netlink.
func (r Route) stock() *netlink.Route {
	dev, err := netlink.LinkByName(r.Dev)
	if err != nil {
		panic(err)
	}
	s := &netlink.Route{LinkIndex: dev.Attrs().Index, Dst: ipNet(r.Dst), Gw: r.Via.AsSlice()}
	if r.OnLink {
		s.SetFlag(unix.RTNH_F_ONLINK)
	}
	return s
}

// with returns the route with a change.
func with(r *netlink.Route, change func(*netlink.Route)) *netlink.Route {
	change(r)
	return r
}

// table is a Keeper that has routes only.
type table struct{ *Keeper }

// Set returns what could not be done.
func (t *table) Set(want []Route) error {
	if t.Keeper.Set(State{Routes: want}) {
		return nil
	}
	return errors.Join(t.failures()...)
}

func (t *table) failures() (all []error) {
	t.mu.Lock() // Run may be at it
	defer t.mu.Unlock()
	for _, err := range t.said.failures {
		all = append(all, err)
	}
	return all
}

// config lets the table have what leads to a peer as direct or tunnelled says.
func (n *node) config() Config {
	return Config{
		Networks: []netip.Prefix{families[0].network, families[1].network},
		Subnets:  []netip.Prefix{families[0].subnet(1), families[1].subnet(1)},
		Logger:   slog.New(slog.DiscardHandler),
	}
}

// open opens a table that is closed, and leaves its routes, at the end.
func (n *node) open(cfg Config) *table {
	n.Helper()
	t := n.begin(cfg)
	n.Cleanup(func() {
		if err := t.Close(); err != nil {
			n.Error(err)
		}
	})
	return t
}

// begin opens a table.
func (n *node) begin(cfg Config) *table {
	n.Helper()
	k, err := Open(cfg)
	n.must(err)
	var earlier []Route
	for _, f := range families {
		for i := range 64 {
			earlier = append(earlier, n.direct(f, i), n.tunnelled(f, i))
		}
	}
	k.Claim(earlier)
	return &table{k}
}

// run runs the table until the end.
func (n *node) run(t *table) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- t.Run(ctx) }()
	n.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.Error(err)
		}
	})
	// From then on, have matches the kernel.
	n.eventually("Run runs", func() bool {
		t.mu.Lock()
		defer t.mu.Unlock()
		return t.followed
	})
}

// unseen runs f while Run receives and does nothing.
func (n *node) unseen(t *table, f func() error) {
	n.Helper()
	t.mu.Lock()
	err := f()
	t.mu.Unlock()
	n.must(err)
}

// logged opens a table with a log, and runs it.
func (n *node) logged() (*table, *testkit.Log) {
	n.Helper()
	out, cfg := new(testkit.Log), n.config()
	cfg.Logger = out.Logger()
	t := n.open(cfg)
	n.run(t)
	return t, out
}

func (n *node) eventually(what string, cond func() bool) {
	n.Helper()
	testkit.Eventually(n, what, cond, func() string { return "routes:\n" + strings.Join(n.routes(), "\n") })
}

// routes are all unicast and special routes of all tables but local, sorted,
// without those of the node's own addresses.
func (n *node) routes() (lines []string) {
	n.Helper()
	for _, f := range families {
		list, err := netlink.RouteListFiltered(f.number, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		n.must(err)
		for _, r := range list {
			if r.Table != unix.RT_TABLE_LOCAL && (r.Protocol != unix.RTPROT_KERNEL || f.network.Overlaps(prefix(r.Dst))) {
				lines = append(lines, line(r))
			}
		}
	}
	lines = slices.DeleteFunc(lines, func(s string) bool { return strings.Contains(s, "fd00:5:1::/128") })
	slices.Sort(lines)
	return lines
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits)
}

// line is all that matters of a route.
func line(r netlink.Route) string {
	s := fmt.Sprintf("%s via %v dev %d flags %#x metric %d table %d proto %d scope %d type %d", r.Dst, r.Gw, r.LinkIndex,
		r.Flags, r.Priority, r.Table, r.Protocol, r.Scope, r.Type)
	for _, hop := range r.MultiPath {
		s += fmt.Sprintf(" nexthop via %v dev %d", hop.Gw, hop.LinkIndex)
	}
	return s
}

// lines are those of the routes as stock flannel makes them.
func (f family) lines(routes ...Route) (lines []string) {
	for _, r := range routes {
		s := r.stock()
		s.Priority, s.Table, s.Protocol, s.Type = f.metric, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RTN_UNICAST
		lines = append(lines, line(*s))
	}
	slices.Sort(lines)
	return lines
}

// has fails the test unless the routes are those of want.
func (n *node) has(want []string) {
	n.Helper()
	if got := n.routes(); !slices.Equal(got, want) {
		n.Errorf("routes:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// monitor receives all changes of routes, as 'ip monitor route'.
type monitor struct {
	*node
	events *nlwatch.Watcher
}

func (n *node) monitor() *monitor {
	n.Helper()
	events, err := nlwatch.Open(unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	n.must(err)
	n.Cleanup(events.Close)
	return &monitor{n, events}
}

// seen returns the changes since the monitor was made or seen was called, as
// "new" or "del" with Dst.
func (m *monitor) seen() (changes []string) {
	m.Helper()
	marker := &netlink.Route{LinkIndex: m.eth0.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24"))}
	m.must(netlink.RouteAdd(marker), netlink.RouteDel(marker))
	for deadline := time.Now().Add(testkit.Patience); ; {
		messages, missed := m.events.Next(deadline)
		if missed || messages == nil {
			m.Fatalf("the monitor missed changes: %t", missed)
		}
		for _, e := range messages {
			dst, ok := destination(e.Data)
			switch {
			case !ok || !slices.ContainsFunc(families, func(f family) bool { return f.network.Overlaps(dst) }) && dst.String() != marker.Dst.String():
			case dst.String() == marker.Dst.String():
				if e.Header.Type == unix.RTM_DELROUTE {
					return changes
				}
			case e.Header.Type == unix.RTM_DELROUTE:
				changes = append(changes, "del "+dst.String())
			case nl.DeserializeRtMsg(e.Data).Table == unix.RT_TABLE_MAIN:
				changes = append(changes, "new "+dst.String())
			}
		}
	}
}
