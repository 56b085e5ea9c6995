package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬─ host c ── pod-c  10.5.3.2, and when that node has gone
// pod-b ── host b ─┴─ host d ── pod-d  10.5.3.2
func TestLeaseComesMovesAndGoesWithoutDisturbingOtherPeers(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{nodes: 2, Options: netlab.Options{Hosts: 4}}, func(t *testing.T, l *lab) {
		a, b, c, d := l.Hosts[0], l.Hosts[1], l.Hosts[2], l.Hosts[3]
		ab := l.leases()[:2]
		moving := l.leases()[2]
		// What host d takes over.
		addAddr(t, d.NS, "cni0", netip.PrefixFrom(c.Gateway(), 24))
		addAddr(t, d.NS, "cni0", netip.PrefixFrom(c.Gateway6(), 64))
		addAddr(t, d.Pods[0].NS, "eth0", netip.PrefixFrom(c.Pods[0].Addr, 24))
		addAddr(t, d.Pods[0].NS, "eth0", netip.PrefixFrom(c.Pods[0].Addr6, 64))
		for _, addr := range []netip.Addr{c.Pods[0].Addr, c.Pods[0].Addr6} {
			answer(t, c.Pods[0].NS, addr, "c")
			answer(t, d.Pods[0].NS, addr, "d")
		}

		steady := []*steadyFlow{
			startSteadyFlow(t, a.Pods[0], b.Pods[0], b.Pods[0].Addr),
			startSteadyFlow(t, b.Pods[0], a.Pods[0], a.Pods[0].Addr),
			startSteadyFlow(t, a.Pods[0], b.Pods[0], b.Pods[0].Addr6),
			startSteadyFlow(t, b.Pods[0], a.Pods[0], a.Pods[0].Addr6),
		}

		l.setLeases(append(ab, moving))
		l.expectPeers(b.Addr, c.Addr)
		onC := startDaemon(t, c.NS, l.leaseFile, l.engine.flags[0]...)
		l.expectAnswer(c.Pods[0], "c")

		onC.stop(syscall.SIGTERM)
		moving.PublicIP, moving.PublicIPv6 = d.Addr, d.Addr6
		l.setLeases(append(ab, moving))
		l.expectPeers(b.Addr, d.Addr)
		startDaemon(t, d.NS, l.leaseFile, l.engine.flags[0]...)
		l.expectAnswer(c.Pods[0], "d")

		if err := os.WriteFile(l.leaseFile, []byte("{"), 0o644); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "host a refuses a broken file", func() bool {
			return l.daemons[0].status().Source.LastError != ""
		})
		l.expectAnswer(c.Pods[0], "d")

		l.setLeases(ab)
		l.expectPeers(b.Addr)
		for _, addr := range []netip.Addr{c.Pods[0].Addr, c.Pods[0].Addr6} {
			if _, err := a.Pods[0].NS.Dial(t.Context(), "tcp", netip.AddrPortFrom(addr, 80).String()); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("the lease is gone, but connecting to %s returns: %v", addr, err)
			}
		}

		var sent uint64
		for _, s := range steady {
			if err := s.stop(); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
			sent += s.sent.Load()
		}
		peer := l.daemons[0].status().Dataplane.Peers[0]
		if got := peer.TXPackets + peer.RXPackets; got < sent {
			t.Errorf("host a counts %d packets to and from host b, which exchanged %d: the counters were not kept", got, sent)
		}
	})
}

// pod-a ── host a ─┬─ host b ── pod-b
//
//	└─ host c, which cannot be reached
func TestPeerThatCannotBeReachedDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]func(t *testing.T, l *lab){
		"it is down": func(t *testing.T, l *lab) {
			setDown(t, l.Hosts[2].NS, netlab.UnderlayLink)
		},
		"the route is prohibited": func(t *testing.T, l *lab) {
			if err := l.Hosts[0].NS.Netlink().RouteAdd(&netlink.Route{
				Type: unix.RTN_PROHIBIT, Dst: &net.IPNet{IP: l.Hosts[2].Addr.AsSlice(), Mask: net.CIDRMask(32, 32)},
			}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEngines(t, labOptions{Options: netlab.Options{Hosts: 3}}, func(t *testing.T, l *lab) {
				cut(t, l)
				a, b, c := l.pod(0), l.pod(1), l.pod(2)
				steady := []*steadyFlow{startSteadyFlow(t, a, b, b.Addr), startSteadyFlow(t, b, a, a.Addr6)}
				lost, err := dialUDP(a.NS, netip.AddrPortFrom(c.Addr, 9))
				if err != nil {
					t.Fatal(err)
				}
				defer lost.Close()
				testkit.Eventually(t, "2000 datagrams are sent beside the steady flows", func() bool {
					for range 20 {
						_, _ = lost.Write(make([]byte, 1000)) // ICMP errors come back
					}
					return steady[0].sent.Load() > 2000
				})
				for _, s := range steady {
					if err := s.stop(); err != nil {
						t.Errorf("%s: %v", s.name, err)
					}
				}
			})
		})
	}
}

func setDown(t testing.TB, ns *netlab.Namespace, name string) {
	t.Helper()
	link, err := ns.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Netlink().LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
}

// expectPeers waits until the daemon on host a has exactly these peers.
func (l *lab) expectPeers(addrs ...netip.Addr) {
	l.t.Helper()
	var got []netip.Addr
	testkit.Eventually(l.t, fmt.Sprintf("host a has the peers %s", addrs), func() bool {
		got = got[:0]
		for _, p := range l.daemons[0].status().Dataplane.Peers {
			got = append(got, p.PublicIP)
		}
		return fmt.Sprint(got) == fmt.Sprint(addrs)
	}, func() string { return fmt.Sprintf("it has %s", got) })
}

// answer makes a namespace answer datagrams to port 7 of addr with name.
func answer(t testing.TB, ns *netlab.Namespace, addr netip.Addr, name string) {
	t.Helper()
	conn, err := listenUDP(ns, netip.AddrPortFrom(addr, 7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1)
		for {
			_, peer, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteToUDPAddrPort([]byte(name), peer)
		}
	}()
}

// expectAnswer sends requests from pod-a until name answers at both addresses of p.
func (l *lab) expectAnswer(p *netlab.Pod, name string) {
	l.t.Helper()
	for _, addr := range []netip.Addr{p.Addr, p.Addr6} {
		conn, err := dialUDP(l.pod(0).NS, netip.AddrPortFrom(addr, 7))
		if err != nil {
			l.t.Fatal(err)
		}
		defer conn.Close()
		got := make([]byte, 1)
		if !testkit.Within(testkit.Patience, func() bool {
			if _, err := conn.Write([]byte("?")); err != nil {
				return false
			}
			_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			_, err := conn.Read(got)
			return err == nil && string(got) == name
		}) {
			l.t.Errorf("%s: the last to answer was %q, want %q", addr, got, name)
		}
	}
}
