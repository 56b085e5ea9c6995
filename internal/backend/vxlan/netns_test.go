package vxlan

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlwatch"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The tests here need root. Each has a namespace of its own, whose underlay is
// eth0, one end of a veth, with the addresses of node 1.

func TestMain(m *testing.M) { netlabtest.Main(m) }

var (
	local4 = netip.MustParseAddr("192.0.2.1")
	local6 = netip.MustParseAddr("2001:db8::1")
)

// host is the namespace of a test. Its methods run on the thread inside it.
type host struct {
	testing.TB
	ns *netlab.Namespace
	nl *netlink.Handle
}

func inside(t testing.TB, f func(h host)) {
	t.Helper()
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		h := host{t, ns, ns.Netlink()}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "eth0", 1500
		h.must(h.nl.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}))
		for _, name := range []string{"wire", "eth0"} {
			h.must(h.nl.LinkSetUp(h.link(name)))
		}
		for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
			h.must(h.nl.AddrAdd(h.link("eth0"), addr(a)))
		}
		f(h)
	})
}

func (h host) must(errs ...error) {
	h.Helper()
	if err := errors.Join(errs...); err != nil {
		h.Fatal(err)
	}
}

func (h host) link(name string) netlink.Link {
	h.Helper()
	l, err := h.nl.LinkByName(name)
	h.must(err)
	return l
}

func (h host) vxlan(name string) *netlink.Vxlan {
	h.Helper()
	v, ok := h.link(name).(*netlink.Vxlan)
	if !ok {
		h.Fatalf("%s is not a VXLAN device", name)
	}
	return v
}

func addr(s string) *netlink.Addr {
	p := netip.MustParsePrefix(s)
	return &netlink.Addr{
		IPNet: netlab.IPNet(p),
		Flags: unix.IFA_F_NODAD,
	}
}

// eth0 is the underlay, as internal/host/underlay describes it.
func (h host) eth0() underlay.Interface {
	h.Helper()
	a := h.link("eth0").Attrs()
	return underlay.Interface{Name: a.Name, Index: a.Index, MTU: a.MTU, IPv4: local4, IPv6: local6}
}

var networks = []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/48")}

// config4 is flannel.1 for IPv4 pods over IPv4.
func (h host) config4() setup {
	return setup{
		Options: Options{VNI: 1}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, Networks: networks,
		Underlay: h.eth0(), Local: local4, MAC: MAC(local4, 1, false), Logger: slog.New(slog.DiscardHandler),
	}
}

// config6 is flannel-v6.1 for IPv6 pods over IPv6.
func (h host) config6() setup {
	c := h.config4()
	c.IPv6, c.Local, c.MAC = true, local6, MAC(local6, 1, true)
	c.Subnets = []netip.Prefix{netip.MustParsePrefix("fd00:5:0:1::/64")}
	return c
}

// open opens the device until the test ends.
func (h host) open(cfg setup) *kept {
	h.Helper()
	d, err := openKept(cfg)
	h.must(err)
	h.Cleanup(func() { d.Close() })
	return d
}

// run runs the device until stop is called, at the latest when the test ends.
func (h host) run(d *kept) (stop func()) {
	h.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.Errorf("Run: %v", err)
		}
	})
	h.Cleanup(stop)
	return stop
}

// addrs are the addresses of a link, sorted.
func (h host) addrs(name string) (all []string) {
	h.Helper()
	list, err := h.nl.AddrList(h.link(name), netlink.FAMILY_ALL)
	h.must(err)
	for _, a := range list {
		all = append(all, a.IPNet.String())
	}
	slices.Sort(all)
	return all
}

// table is what the kernel has of neighbours and FDB entries of a link, one a
// line: "10.5.2.0 02:00:00:00:00:02", "02:00:00:00:00:02 dst 192.0.2.2". Those
// that are not permanent say so.
func (h host) table(name string) (all []string) {
	h.Helper()
	index := h.link(name).Attrs().Index
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		list, err := h.nl.NeighList(index, family)
		h.must(err)
		for _, n := range list {
			line := fmt.Sprintf("%s %s", n.IP, n.HardwareAddr)
			if family == unix.AF_BRIDGE {
				line = fmt.Sprintf("%s dst %s", n.HardwareAddr, n.IP)
			}
			if n.State&netlink.NUD_PERMANENT == 0 {
				line += fmt.Sprintf(" state %#x", n.State)
			}
			// Groups that the host listens to are in its tables too.
			if n.State != netlink.NUD_NOARP {
				all = append(all, line)
			}
		}
	}
	slices.Sort(all)
	return all
}

// hasTable fails the test unless the link has exactly these entries.
func (h host) hasTable(name string, want ...string) {
	h.Helper()
	slices.Sort(want)
	if got := h.table(name); !slices.Equal(got, want) {
		h.Errorf("%s has\n\t%s\nwant\n\t%s", name, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// peer4 is node number n, from 2 to 255, peer6 the same for IPv6.
func peer4(n int) Peer {
	return Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24),
		MAC:      net.HardwareAddr{2, 0, 0, 0, 0, byte(n)},
		Endpoint: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}),
	}
}

func peer6(n int) Peer {
	return Peer{
		Subnet:   netip.MustParsePrefix(fmt.Sprintf("fd00:5:0:%x::/64", n)),
		MAC:      net.HardwareAddr{2, 0, 0, 0, 6, byte(n)},
		Endpoint: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n)),
	}
}

// lines are the entries of peers.
func lines(peers ...Peer) (all []string) {
	for _, p := range peers {
		all = append(all, fmt.Sprintf("%s %s", p.Subnet.Addr(), p.MAC), fmt.Sprintf("%s dst %s", p.MAC, p.Endpoint))
	}
	return all
}

// family is the two families as the tests of entries need them.
type family struct {
	name   string
	config func(h host) setup
	peer   func(n int) Peer
}

var families = []family{
	{"IPv4", host.config4, peer4},
	{"IPv6", host.config6, peer6},
}

// forFamilies runs f in a namespace a family.
func forFamilies(t *testing.T, f func(h host, cfg setup, peer func(n int) Peer)) {
	for _, fam := range families {
		t.Run(fam.name, func(t *testing.T) {
			inside(t, func(h host) { f(h, fam.config(h), fam.peer) })
		})
	}
}

// hears waits until a function of listen has returned at least n notifications.
func (h host) hears(heard func(name string) []string, name string, n int) (all []string) {
	h.Helper()
	testkit.Within(testkit.Patience, func() bool {
		all = append(all, heard(name)...)
		return len(all) >= n
	})
	return all
}

// listen returns a function that returns what the kernel has since announced about
// changes to one of its links: messages of links, addresses, neighbours and FDB
// entries, or those of the groups. All that was done before the call has been
// announced by then, except for IPv6 addresses, which the kernel announces later.
func (h host) listen(groups ...uint) (heard func(name string) []string) {
	h.Helper()
	if groups == nil {
		groups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_NEIGH}
	}
	w, err := nlwatch.Open(groups...)
	h.must(err)
	h.Cleanup(w.Close)
	return func(name string) (all []string) {
		h.Helper()
		index := h.link(name).Attrs().Index
		for {
			messages, missed := w.Next(time.Now())
			if missed {
				h.Fatal("notifications were lost")
			}
			if len(messages) == 0 {
				return all
			}
			for _, m := range messages {
				// Neighbours for groups come and go as the kernel likes, by what
				// goes on in all namespaces of the machine.
				if m.Header.Type == unix.RTM_NEWNEIGH || m.Header.Type == unix.RTM_DELNEIGH {
					if n, err := netlink.NeighDeserialize(m.Data); err == nil && n.Family != unix.AF_BRIDGE && n.IP.IsMulticast() {
						continue
					}
				}
				// The index stands in the same place in ifinfomsg, ifaddrmsg and ndmsg.
				if len(m.Data) >= 8 && int(binary.NativeEndian.Uint32(m.Data[4:])) == index {
					all = append(all, fmt.Sprintf("message of type %d: %x", m.Header.Type, m.Data))
				}
			}
		}
	}
}
