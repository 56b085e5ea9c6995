package vxlan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func fdb(dev int, mac net.HardwareAddr, dst netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: dev, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT, Flags: netlink.NTF_SELF,
		IP: dst.AsSlice(), HardwareAddr: mac,
	}
}

func neigh(dev int, a netip.Addr, mac net.HardwareAddr, state int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: dev, IP: a.AsSlice(), HardwareAddr: mac, State: state}
}

func TestPeersHaveTheirEntries(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		h.hasTable(d.Name())
		h.must(d.add(peer(2), peer(3)))
		h.hasTable(d.Name(), lines(peer(2), peer(3))...)
		h.must(d.add(peer(4)))
		h.hasTable(d.Name(), lines(peer(2), peer(3), peer(4))...)
		h.must(d.retain(peer(2), peer(4)))
		h.hasTable(d.Name(), lines(peer(2), peer(4))...)
		h.must(d.retain())
		h.hasTable(d.Name())
	})
}

func TestPeersOfBothFamiliesShareADevice(t *testing.T) {
	inside(t, func(h host) {
		cfg := h.config4()
		cfg.Local, cfg.Subnets = local6, append(cfg.Subnets, h.config6().Subnets...)
		d := h.open(cfg)
		v4, v6 := peer4(2), peer6(2)
		v4.MAC, v4.Endpoint = v6.MAC, v6.Endpoint // of one node
		both := slices.Compact(slices.Sorted(slices.Values(lines(v4, v6))))
		h.must(d.add(v4, v6))
		h.hasTable("flannel.1", both...)
		h.must(d.retain(v6)) // whose FDB entry it is too
		h.hasTable("flannel.1", lines(v6)...)
		h.must(d.add(v4), d.retain(v4, v6))
		h.hasTable("flannel.1", both...)
	})
}

// TestChangedPeerIsReplaced: by another lease for the same subnet.
func TestChangedPeerIsReplaced(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		h.must(d.add(peer(2), peer(3)))
		moved := peer(2)
		moved.Endpoint = peer(9).Endpoint
		h.must(d.add(moved, peer(3)))
		h.hasTable(d.Name(), lines(moved, peer(3))...)
		renewed := moved
		renewed.MAC = net.HardwareAddr{2, 0, 0, 9, 9, 9}
		heard := h.listen(unix.RTNLGRP_NEIGH)
		h.must(d.add(renewed, peer(3)))
		// Packets are never led to a MAC that is nowhere: the FDB entry is first, and
		// the former one goes last.
		if got := h.hears(heard, d.Name(), 3); len(got) != 3 || !strings.HasPrefix(got[2], fmt.Sprintf("message of type %d: %02x", unix.RTM_DELNEIGH, unix.AF_BRIDGE)) || !strings.HasPrefix(got[0], fmt.Sprintf("message of type %d: %02x", unix.RTM_NEWNEIGH, unix.AF_BRIDGE)) {
			h.Errorf("heard\n%s", strings.Join(got, "\n"))
		}
		h.must(d.retain(renewed, peer(3)))
		h.hasTable(d.Name(), lines(renewed, peer(3))...)
	})
}

// TestSubnetsThatChangeHandsKeepBothPeers: two nodes have each other's subnet.
func TestSubnetsThatChangeHandsKeepBothPeers(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		a, b := peer(2), peer(3)
		first := h.open(cfg)
		h.must(first.add(a, b), first.Close())
		a.Subnet, b.Subnet = b.Subnet, a.Subnet
		d := h.open(cfg)
		heard := h.listen(unix.RTNLGRP_NEIGH)
		h.must(d.add(a, b), d.retain(a, b))
		h.hasTable(d.Name(), lines(a, b)...)
		if got := h.hears(heard, d.Name(), 2); len(got) != 2 {
			h.Errorf("%d changes, want 2, of the neighbours:\n%s", len(got), strings.Join(got, "\n"))
		}
	})
}

// TestStalePeersOfFormerRunsAreRemoved: those of stock flannel and of a twilld
// that was killed, with what is half of a peer.
func TestStalePeersOfFormerRunsAreRemoved(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		dev := d.Index()
		for _, n := range []int{2, 3, 4} {
			p := peer(n)
			h.must(h.nl.NeighSet(neigh(dev, p.Subnet.Addr(), p.MAC, netlink.NUD_PERMANENT)), h.nl.NeighSet(fdb(dev, p.MAC, p.Endpoint)))
		}
		h.must(h.nl.NeighSet(neigh(dev, peer(5).Subnet.Addr(), peer(5).MAC, netlink.NUD_PERMANENT))) // no FDB entry
		h.must(d.add(peer(2), peer(6)), d.retain(peer(2), peer(6)))
		h.hasTable(d.Name(), lines(peer(2), peer(6))...)
	})
}

// TestForeignEntriesStay: an operator's, those that the kernel has learnt, and
// what is not the address of a subnet.
func TestForeignEntriesStay(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		dev, p := d.Index(), peer(7)
		host, outside := p.Subnet.Addr().Next(), netip.MustParseAddr("198.51.100.0")
		if host.Is6() {
			outside = netip.MustParseAddr("fd99::")
		}
		var foreign []string
		for _, e := range []*netlink.Neigh{
			neigh(dev, host, p.MAC, netlink.NUD_PERMANENT),                                 // a host, not a subnet
			neigh(dev, outside, net.HardwareAddr{2, 7, 0, 0, 0, 1}, netlink.NUD_PERMANENT), // not of the networks
			neigh(dev, peer(8).Subnet.Addr(), net.HardwareAddr{2, 7, 0, 0, 0, 2}, netlink.NUD_STALE),
			fdb(dev, net.HardwareAddr{2, 7, 0, 0, 0, 3}, peer(9).Endpoint),
			fdb(dev, p.MAC, peer(9).Endpoint), // of the host's neighbour, which is not ours
		} {
			h.must(h.nl.NeighSet(e))
		}
		// For frames of which nothing is known, two destinations.
		h.must(h.nl.NeighAppend(fdb(dev, make(net.HardwareAddr, 6), peer(8).Endpoint)), h.nl.NeighAppend(fdb(dev, make(net.HardwareAddr, 6), peer(9).Endpoint)))
		learnt := fdb(dev, net.HardwareAddr{2, 7, 0, 0, 0, 4}, peer(9).Endpoint)
		learnt.State = netlink.NUD_REACHABLE
		h.must(h.nl.NeighSet(learnt))
		foreign = h.table(d.Name())
		if len(foreign) != 8 {
			h.Fatalf("%q", foreign)
		}
		h.must(d.add(peer(2)), d.retain(peer(2)))
		h.hasTable(d.Name(), append(lines(peer(2)), foreign...)...)
		h.must(d.retain())
		h.hasTable(d.Name(), foreign...)
	})
}

// TestPeerThatTheKernelRefusesHasNoNeighbour: the device was made by hand, with
// room for so many FDB entries; its limit is none of the things in which it may
// not differ.
func TestPeerThatTheKernelRefusesHasNoNeighbour(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		name := Name(1, cfg.IPv6)
		h.must(h.nl.LinkAdd(&netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: cfg.MAC}, VxlanId: 1,
			VtepDevIndex: cfg.Underlay.Index, SrcAddr: cfg.Local.AsSlice(), Limit: 3,
		}))
		out := new(testkit.Log)
		cfg.Logger = out.Logger()
		d := h.open(cfg)
		if d.add(peer(2), peer(3), peer(4), peer(5), peer(6)) == nil {
			h.Fatal("all done")
		}
		for _, part := range []string{
			fmt.Sprintf("write FDB entry %s dev %s dst %s: no space left on device", peer(5).MAC, name, peer(5).Endpoint),
			"(and 1 more)",
		} {
			if !strings.Contains(out.String(), part) {
				h.Errorf("%s\nlacks %q", out, part)
			}
		}
		h.hasTable(name, lines(peer(2), peer(3), peer(4))...)
		// Where there is room again, they are added.
		_ = d.retain(peer(2))
		h.must(d.add(peer(2), peer(5), peer(6)))
		h.hasTable(name, lines(peer(2), peer(5), peer(6))...)
	})
}

// TestPeerThatMakesNoSenseIsRefused: the kernel would take some of them.
func TestPeerThatMakesNoSenseIsRefused(t *testing.T) {
	d := Device{Options: Options{VNI: 1}, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, Local: local4, MAC: MAC(local4, 1, false)}
	if err := d.CheckPeer(peer4(3)); err != nil {
		t.Errorf("a sound one: %v", err)
	}
	for _, tt := range []struct {
		name   string
		change func(p *Peer)
		err    string
	}{
		{"host bits", func(p *Peer) { p.Subnet = netip.PrefixFrom(p.Subnet.Addr().Next(), 24) }, "has host bits"},
		{"no subnet", func(p *Peer) { p.Subnet = netip.Prefix{} }, "is missing or has host bits set"},
		{"own subnet", func(p *Peer) { p.Subnet = netip.MustParsePrefix("10.5.1.0/24") }, "is this node's own"},
		{"subnet of the other family", func(p *Peer) { p.Subnet = peer6(3).Subnet }, "flannel.1 has no subnet of this address family"},
		{"no MAC", func(p *Peer) { p.MAC = nil }, "no MAC address"},
		{"zero MAC", func(p *Peer) { p.MAC = make(net.HardwareAddr, 6) }, "not a unicast MAC address"},
		{"group MAC", func(p *Peer) { p.MAC = net.HardwareAddr{3, 0, 0, 0, 0, 1} }, "not a unicast MAC address"},
		{"long MAC", func(p *Peer) { p.MAC = make(net.HardwareAddr, 20) }, "not a unicast MAC address"},
		{"own MAC", func(p *Peer) { p.MAC = MAC(local4, 1, false) }, "delete flannel.1 on one of the two nodes and restart flanneld or twilld there"},
		{"no endpoint", func(p *Peer) { p.Endpoint = netip.Addr{} }, "the endpoint is not a unicast address"},
		{"unspecified endpoint", func(p *Peer) { p.Endpoint = netip.IPv4Unspecified() }, "the endpoint is not a unicast address"},
		{"multicast endpoint", func(p *Peer) { p.Endpoint = netip.MustParseAddr("239.1.1.1") }, "the endpoint is not a unicast address"},
		{"endpoint of the other family", func(p *Peer) { p.Endpoint = peer6(3).Endpoint }, "of a different address family than this node's address 192.0.2.1"},
	} {
		p := peer4(3)
		tt.change(&p)
		if err := d.CheckPeer(p); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
		}
	}
}

// TestLastOfTwoLeasesHasTheMAC: a node has changed its address and has got
// another subnet, and its former lease has not expired.
func TestLastOfTwoLeasesHasTheMAC(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		former, now := peer(2), peer(3)
		now.MAC = former.MAC
		h.must(d.add(former))
		h.must(d.add(former, now))
		want := append(lines(now), fmt.Sprintf("%s %s", former.Subnet.Addr(), former.MAC))
		h.hasTable(d.Name(), want...)
		heard := h.listen(unix.RTNLGRP_NEIGH)
		h.must(d.add(now, former), d.retain(former, now))
		h.run(d)()
		if got := heard(d.Name()); len(got) > 0 {
			h.Errorf("they take it from each other:\n%s", strings.Join(got, "\n"))
		}
		if len(d.shared) != 1 || d.shared[0].Subnet != former.Subnet {
			h.Errorf("of the same MAC are %v, want %v", d.shared, former)
		}
		h.must(d.retain(now))
		h.hasTable(d.Name(), lines(now)...)
		// And the other way round, the one that goes is the one that has it.
		h.must(d.add(former), d.retain(former))
		h.hasTable(d.Name(), lines(former)...)
	})
}

// TestLastOfThoseThatAreLeftHasTheMAC: of three leases the newest goes.
func TestLastOfThoseThatAreLeftHasTheMAC(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		var peers []Peer
		for n := 2; n <= 5; n++ {
			p := peer(n)
			p.MAC = peer(2).MAC
			peers = append(peers, p)
			h.must(d.add(peers...))
		}
		for left := 3; left > 0; left-- {
			h.must(d.retain(peers[:left]...), d.add(peers[:left]...))
			want := lines(peers[left-1])
			for _, p := range peers[:left-1] {
				want = append(want, lines(p)[0])
			}
			h.hasTable(d.Name(), want...)
		}
	})
}

// node is one of many peers.
func node(n int) Peer {
	return Peer{
		Subnet:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24),
		MAC:      net.HardwareAddr{2, 0, 1, 0, byte(n >> 8), byte(n)},
		Endpoint: netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n)}),
	}
}

// manyPeers is how many a node of the largest clusters has.
const manyPeers = 5000

func many() (peers []Peer) {
	for n := range manyPeers {
		peers = append(peers, node(n+1))
	}
	return peers
}

// configMany is for a network with room for many, as node 0 of it.
func (h host) configMany() setup {
	cfg := h.config4()
	cfg.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	cfg.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	return cfg
}

func TestThousandsOfPeersAreAddedFoundAndRemoved(t *testing.T) {
	inside(t, func(h host) {
		peers := many()
		d := h.open(h.configMany())
		timed := func(what string, f func() error) {
			t.Helper()
			begin := time.Now()
			h.must(f())
			t.Logf("%s: %v", what, time.Since(begin).Round(100*time.Microsecond))
		}
		timed("add 5,000 peers", func() error { return d.add(peers...) })
		if got := len(h.table("flannel.1")); got != 2*manyPeers {
			t.Fatalf("%d entries, want %d", got, 2*manyPeers)
		}
		timed("add them again", func() error { return d.add(peers...) })
		timed("add one more", func() error { return d.add(node(manyPeers + 1)) })
		h.must(d.Close())

		d = h.open(h.configMany())
		peers = append(peers, node(manyPeers+1))
		heard := h.listen(unix.RTNLGRP_NEIGH)
		timed("find them after a restart", func() error { return errors.Join(d.add(peers...), d.retain(peers...)) })
		if got := heard("flannel.1"); len(got) > 0 {
			t.Errorf("%d changes, want none", len(got))
		}
		stop := h.run(d)
		timed("remove all but one", func() error { return d.retain(peers[:1]...) })
		stop()
		h.hasTable("flannel.1", lines(peers[0])...)
	})
}

// BenchmarkPeers adds 5,000 peers to a device without any, finds them after a
// restart, and removes them.
func BenchmarkPeers(b *testing.B) {
	inside(b, func(h host) {
		peers := many()
		var add, find, remove time.Duration
		took := func(sum *time.Duration, errs func() error) {
			begin := time.Now()
			h.must(errs())
			*sum += time.Since(begin)
		}
		for b.Loop() {
			d := h.open(h.configMany())
			took(&add, func() error { return d.add(peers...) })
			h.must(d.Close())
			d = h.open(h.configMany())
			took(&find, func() error { return errors.Join(d.add(peers...), d.retain(peers...)) })
			took(&remove, func() error { return d.retain() })
			h.must(d.Close())
		}
		for _, m := range []struct {
			name string
			sum  time.Duration
		}{{"add", add}, {"find", find}, {"remove", remove}} {
			b.ReportMetric(float64(m.sum.Milliseconds())/float64(b.N), "ms/"+m.name)
		}
	})
}

// BenchmarkChange changes one of 5,000 peers, and passes the whole set each time
// as the daemon does.
func BenchmarkChange(b *testing.B) {
	inside(b, func(h host) {
		peers := many()
		d := h.open(h.configMany())
		h.must(d.add(peers...), d.retain(peers...))
		n := 0
		for b.Loop() {
			n++
			p := &peers[n%manyPeers]
			p.Endpoint = netip.AddrFrom4([4]byte{172, 17, byte(n >> 8), byte(n)})
			h.must(d.add(peers...), d.retain(peers...))
		}
	})
}
