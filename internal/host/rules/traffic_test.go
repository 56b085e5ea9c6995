package rules

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// The tests here send packets through two hosts with a pod each, between which
// plain routes lead, as flannel's host-gw backend makes them:
//
//	pod-a ── cni0  host a  eth0 ──── eth0  host b  cni0 ── pod-b
//	10.5.1.2       172.31.9.11       172.31.9.12      10.5.2.2
func pods(t *testing.T, fl flavour) (l *lab, a, b *netlab.Host) {
	t.Helper()
	topo := netlabtest.New(t, netlab.Options{})
	if err := topo.AddHostGW(); err != nil {
		t.Fatal(err)
	}
	a, b = topo.Hosts[0], topo.Hosts[1]
	return labIn(t, fl, a.NS), a, b
}

// podsWanted are the rules of host a.
func podsWanted(fl flavour, a *netlab.Host) Wanted {
	w := wanted(fl)
	w.IPv4 = Pods{netlab.Network, a.Subnet}
	w.IPv6 = Pods{netlab.Network6, a.Subnet6}
	return w
}

// icmp is what an echo request is in each family.
type icmp struct {
	network        string
	request, reply byte
}

func icmpOf(to netip.Addr) icmp {
	if to.Is6() {
		return icmp{"ip6:ipv6-icmp", 128, 129}
	}
	return icmp{"ip4:icmp", 8, 0}
}

// pings numbers the echo requests: connection tracking would take a second one
// of the same identifier for the same flow.
var pings uint16

// pingSource sends an echo request to an address of the namespace at, waits for
// the answer, and returns the source that the request had when it arrived.
func pingSource(t *testing.T, from, at *netlab.Namespace, to netip.Addr) netip.Addr {
	t.Helper()
	proto := icmpOf(to)
	observer, err := at.ListenPacket(proto.network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	c, err := from.Dial(t.Context(), proto.network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	pings++
	request := []byte{proto.request, 0, 0, 0, 0, 0, 0, 1}
	binary.BigEndian.PutUint16(request[4:], pings)
	if to.Is4() { // for ICMPv6 the kernel does it, RFC 3542 §3.1
		sum := uint16(proto.request)<<8 + pings + 1 // without carries: pings are few
		binary.BigEndian.PutUint16(request[2:], ^sum)
	}
	if _, err := c.Write(request); err != nil {
		t.Fatal(err)
	}
	source := awaitICMP(t, observer, proto.request)
	awaitICMP(t, c.(net.PacketConn), proto.reply)
	return source
}

// awaitICMP reads up to a message of a kind and returns its source.
func awaitICMP(t *testing.T, c net.PacketConn, kind byte) netip.Addr {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("no ICMP message of type %d: %v", kind, err)
		}
		if n > 0 && buf[0] == kind {
			a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			return a.Unmap()
		}
	}
}

func TestPodsAreMasqueradedOnTheirWayOutOfThePodNetworkAndNowhereElse(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		podA, podB := a.Pods[0], b.Pods[0]
		for _, masq := range []bool{false, true} {
			w := podsWanted(fl, a)
			w.Masquerade = masq
			r := newRules(t, w)
			l.apply(r)
			for _, tt := range []struct {
				name         string
				from, at     *netlab.Namespace
				to           netip.Addr
				plain, cloak netip.Addr // the source without masquerading, and with it
			}{
				{"pod to pod", podA.NS, podB.NS, podB.Addr, podA.Addr, podA.Addr},
				{"pod to pod, IPv6", podA.NS, podB.NS, podB.Addr6, podA.Addr6, podA.Addr6},
				{"pod of another node to pod", podB.NS, podA.NS, podA.Addr, podB.Addr, podB.Addr},
				{"pod to the world", podA.NS, b.NS, b.Addr, podA.Addr, a.Addr},
				{"pod to the world, IPv6", podA.NS, b.NS, b.Addr6, podA.Addr6, a.Addr6},
				{"the world to a pod", b.NS, podA.NS, podA.Addr, b.Addr, b.Addr},
				{"the world to a pod, IPv6", b.NS, podA.NS, podA.Addr6, b.Addr6, b.Addr6},
				{"host to its pod", a.NS, podA.NS, podA.Addr, a.Gateway(), a.Gateway()},
			} {
				want := tt.plain
				if masq {
					want = tt.cloak
				}
				if got := pingSource(t, tt.from, tt.at, tt.to); got != want {
					t.Errorf("masquerade %t: %s: source %s, want %s", masq, tt.name, got, want)
				}
			}
		}
	})
}

// TestForwardRulesOpenAForwardChainThatDrops, which is what Docker leaves.
func TestForwardRulesOpenAForwardChainThatDrops(t *testing.T) {
	for _, fl := range []flavour{iptablesNFT, iptablesLegacy} {
		t.Run(fl.name, func(t *testing.T) {
			l, a, b := pods(t, fl)
			l.sh("iptables -P FORWARD DROP; ip6tables -P FORWARD DROP")
			from, to := a.Pods[0], b.Pods[0]
			c, err := from.NS.Dial(t.Context(), "udp", netip.AddrPortFrom(to.Addr, 5000).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			testkit.Eventually(t, "FORWARD drops", func() bool {
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				return !strings.Contains(l.sh("iptables -v -n -L FORWARD"), "policy DROP 0 packets")
			})
			l.apply(newRules(t, podsWanted(fl, a)))
			pingSource(t, from.NS, to.NS, to.Addr)
			pingSource(t, from.NS, to.NS, to.Addr6)
			pingSource(t, to.NS, from.NS, from.Addr)
		})
	}
}

// TestNoPacketLeavesWithAPodsAddressWhileRulesAreRestored: each datagram is a flow
// of its own, so each meets the current rules; and at any moment some of them are broken
// or being written, but not those that this flow needs.
func TestNoPacketLeavesWithAPodsAddressWhileRulesAreRestored(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l, a, b := pods(t, fl)
		r := newRules(t, podsWanted(fl, a))
		l.apply(r)
		world, err := b.NS.ListenPacket("udp", netip.AddrPortFrom(b.Addr, 5000).String())
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { sendFlows(ctx, a.Pods[0], world.LocalAddr().String()) })
		bare, seen := 0, 0
		running.Go(func() {
			buf := make([]byte, 9)
			for {
				_, from, err := world.ReadFrom(buf)
				if err != nil {
					return
				}
				seen++
				if addr := from.(*net.UDPAddr).AddrPort().Addr().Unmap(); addr != a.Addr {
					bare++
				}
			}
		})
		breakIt := "iptables -w -t nat -D FLANNEL-POSTRTG 3"
		if fl.nftables {
			breakIt = "nft add rule ip flannel-ipv4 postrtg counter"
		}
		other := podsWanted(fl, a)
		other.IPv4.Subnet = netip.MustParsePrefix("10.5.77.0/24")
		for range 8 {
			l.sh(breakIt)
			l.apply(r)
			set(t, r, other)
			l.apply(r)
			set(t, r, podsWanted(fl, a))
			l.apply(r)
		}
		stop()
		world.Close()
		running.Wait()
		if seen < 100 || bare > 0 {
			t.Errorf("%d of %d datagrams arrived with the address of a pod", bare, seen)
		}
	})
}

// sendFlows sends datagrams, each from another port, until ctx is done.
func sendFlows(ctx context.Context, from *netlab.Pod, to string) {
	for port := 10000; ctx.Err() == nil; port = max(10000, (port+1)%60000) {
		c, err := from.NS.ListenPacket("udp", fmt.Sprintf("%s:%d", from.Addr, port))
		if err != nil {
			continue
		}
		addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
		_, _ = c.WriteTo([]byte("x"), addr)
		c.Close()
	}
}
