package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// overheadOver is what a datagram adds to an inner packet: IPv4 20 or IPv6 40,
// and UDP 8.
func overheadOver(ipv6 bool) int {
	if ipv6 {
		return 48
	}
	return 28
}

// pod-a ── 1472 ── host a ── 1500 ── host b ── 1472 ── pod-b
func TestPingFillsTheMTUOfTheTunnelAndNotAByteMore(t *testing.T) {
	t.Parallel()
	forUnderlays(t, labOptions{}, func(t *testing.T, l *lab) {
		mtu := 1500 - overheadOver(l.ipv6Underlay)
		for i, from := range []*netlab.Pod{l.pod(0), l.pod(1)} {
			to := l.pod(1 - i)
			forFamilies(t, to, func(t *testing.T, addr netip.Addr) {
				if err := ping(from, addr, mtu); err != nil {
					t.Errorf("%d bytes from %s: %v", mtu, from.NS, err)
				}
				if err := ping(from, addr, mtu+1); !errors.Is(err, unix.EMSGSIZE) {
					t.Errorf("%d bytes from %s: %v, want EMSGSIZE", mtu+1, from.NS, err)
				}
			})
		}
	})
}

// pod-a ── 1500 ── host a ── 1500 ── host b ── 1500 ── pod-b
//
//	flannel0: 1472
func TestPodThatDoesNotKnowTheMTULearnsItFromItsHost(t *testing.T) {
	t.Parallel()
	for _, u := range underlays {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{ipv6Underlay: u.ipv6})
			if err := l.SetPodMTU(1500); err != nil {
				t.Fatal(err)
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				l.expectPathMTU(t, addr, 1500-overheadOver(u.ipv6))
				if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("TCP after that: %v", err)
				}
			})
		})
	}
}

// narrowings make the path of an underlay packet from host a to host b
// narrower than the interface.
var narrowings = []struct {
	name string
	do   func(l *lab, mtu int)
}{
	// A route of host a sets the MTU.
	{"route", func(l *lab, mtu int) { l.routeToB(0, netip.Addr{}, mtu) }},
	// Host c is a router on the path and sends ICMP errors about packets that are too big.
	{"router", func(l *lab, mtu int) {
		l.routeToB(2, netip.Addr{}, mtu)
		l.routeToB(0, l.underlay(2), 0)
	}},
}

// forNarrowings is forUnderlays for each of the narrowings, which narrow does.
func forNarrowings(t *testing.T, test func(t *testing.T, l *lab, narrow func(mtu int))) {
	for _, n := range narrowings {
		t.Run(n.name, func(t *testing.T) {
			forUnderlays(t, labOptions{Options: netlab.Options{Hosts: 3}}, func(t *testing.T, l *lab) {
				test(t, l, func(mtu int) { n.do(l, mtu) })
			})
		})
	}
}

// routeToB adds a route for the underlay address of host b on host number from:
// through a gateway if there is one, of an MTU if that is not 0.
func (l *lab) routeToB(from int, via netip.Addr, mtu int) {
	l.t.Helper()
	nl, b := l.Hosts[from].NS.Netlink(), l.underlay(1)
	link, err := nl.LinkByName(netlab.UnderlayLink)
	if err != nil {
		l.t.Fatal(err)
	}
	r := &netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: b.AsSlice(), Mask: net.CIDRMask(b.BitLen(), b.BitLen())},
		MTU:       mtu, MTULock: mtu > 0,
	}
	if via.IsValid() {
		r.Gw = via.AsSlice()
	}
	if err := nl.RouteReplace(r); err != nil {
		l.t.Fatalf("route to %s on host %s: %v", b, l.Hosts[from].Letter, err)
	}
}

// pod-a ── host a ── 1400 ── host b ── pod-b
//
//	(host c)
func TestPodLearnsThatThePathIsNarrowerThanTheTunnel(t *testing.T) {
	t.Parallel()
	const width = 1400
	forNarrowings(t, func(t *testing.T, l *lab, narrow func(mtu int)) {
		narrow(width)
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			l.expectPathMTU(t, addr, width-overheadOver(l.ipv6Underlay))
		})
	})
}

// pod-a ── host a ── 1500, then 1400 ── host b ── pod-b
func TestTCPGoesOnWhenThePathBecomesNarrower(t *testing.T) {
	t.Parallel()
	forNarrowings(t, func(t *testing.T, l *lab, narrow func(mtu int)) {
		results := make(chan error)
		for _, addr := range []netip.Addr{l.pod(1).Addr, l.pod(1).Addr6} {
			s := streams{flows: 4, up: 64 << 20, down: 1 << 20}
			go func() { results <- s.run(l.pod(0), l.pod(1), addr) }()
		}
		testkit.Eventually(t, "traffic flows", func() bool { return l.txPackets(0) > 1000 })
		narrow(1400)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

// txPackets returns how many packets host number i has sent to its peers.
func (l *lab) txPackets(i int) (n uint64) {
	for _, s := range l.daemons[i].status().Shards {
		n += s.TX.Packets
	}
	return n
}

// pod-a ── host a ── 1400 ── host b ── pod-b
func TestPacketThatMayBeFragmentedCrossesANarrowPath(t *testing.T) {
	t.Parallel()
	forNarrowings(t, func(t *testing.T, l *lab, narrow func(mtu int)) {
		narrow(1400)
		if err := l.echoWithout(l.pod(1).Addr, 1400); err != nil {
			t.Error(err)
		}
	})
}

// echoWithout sends a datagram of size bytes of payload without DF from pod-a
// until one comes back.
func (l *lab) echoWithout(addr netip.Addr, size int) error {
	return l.echoOf(addr, size, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	})
}

// echoOf sends a datagram of size bytes of payload from pod-a until one comes
// back. prepare, if not nil, sets the sender's socket up.
func (l *lab) echoOf(addr netip.Addr, size int, prepare func(fd int) error) error {
	server, err := listenUDP(l.pod(1).NS, netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	defer server.Close()
	go echo(server)
	client, err := dialUDP(l.pod(0).NS, addrPort(server))
	if err != nil {
		return err
	}
	defer client.Close()
	if prepare != nil {
		raw, err := client.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		if err := errors.Join(raw.Control(func(fd uintptr) { failed = prepare(int(fd)) }), failed); err != nil {
			return err
		}
	}
	buf, got := make([]byte, size), make([]byte, size+1)
	_, _ = io.ReadFull(content(1, int64(size)), buf)
	// The first ones may go where a router has not yet reported that they are too
	// big.
	if !testkit.Within(testkit.Patience, func() bool {
		if _, err = client.Write(buf); err != nil && !errors.Is(err, unix.EMSGSIZE) {
			return true
		}
		_ = client.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, rerr := client.Read(got)
		return rerr == nil && bytes.Equal(got[:n], buf)
	}) {
		err = errors.New("no echo")
	}
	if err != nil {
		return fmt.Errorf("%d bytes to %s: %w", size, addr, err)
	}
	return nil
}

// IPv6 has no links below 1280 bytes (RFC 8200 §5), so a tunnel must fragment
// what it carries rather than require smaller packets (RFC 2473 §7.1).
//
//	pod-a ── host a ── 1300 ── host b ── pod-b
//	             inside: 1272, 1252 over IPv6
func TestIPv6PodsKeepTheirMinimumMTUOnANarrowPath(t *testing.T) {
	t.Parallel()
	forUnderlays(t, labOptions{}, func(t *testing.T, l *lab) {
		l.routeToB(0, netip.Addr{}, 1300)
		l.expectPathMTU(t, l.pod(1).Addr6, 1280)
		if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr6); err != nil {
			t.Errorf("TCP after that: %v", err)
		}
	})
}

// expectPathMTU sends packets that are too big, with DF, from pod-a to addr
// until the kernel of pod-a has learnt the path MTU, and checks that it is mtu,
// and that mtu fits.
func (l *lab) expectPathMTU(t *testing.T, addr netip.Addr, mtu int) {
	t.Helper()
	expectPathMTU(t, l.pod(0), addr, mtu)
}

// expectPathMTU is the same for any pod.
func expectPathMTU(t *testing.T, from *netlab.Pod, addr netip.Addr, mtu int) {
	t.Helper()
	conn, err := dialUDP(from.NS, netip.AddrPortFrom(addr, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	level, discover, do, known, headers := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, unix.IP_MTU, 28
	if addr.Is6() {
		level, discover, do, known, headers = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, unix.IPV6_MTU, 48
	}
	if err := setInt(conn, level, discover, do); err != nil {
		t.Fatal(err)
	}
	tooBig := make([]byte, mtu+1-headers)
	learnt := testkit.Within(testkit.Patience, func() bool {
		_, err := conn.Write(tooBig)
		return errors.Is(err, unix.EMSGSIZE)
	})
	got, err := getInt(conn, level, known)
	if err != nil {
		t.Fatal(err)
	}
	if !learnt || got != mtu {
		t.Errorf("%d bytes from %s to %s: refused as too big: %t; the pod's path MTU is %d, want %d", mtu+1, from.NS, addr, learnt, got, mtu)
		return
	}
	if err := ping(from, addr, mtu); err != nil {
		t.Errorf("a ping of %d bytes, the path MTU that the pod has learnt: %v", mtu, err)
	}
}

// A host that claims a narrow path to a peer is not believed before a probe: it need not
// be on the path. Nothing is lost meanwhile, and no pod learns what it claims.
//
//	pod-a ── host a ──────────── host b ── pod-b
//	           └── host c: "fragmentation needed, MTU 576"
func TestForgedICMPErrorNarrowsNoPath(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{nodes: 2, Options: netlab.Options{Hosts: 3}}, func(t *testing.T, l *lab) {
		testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472))
		testkit.Eventually(t, "the kernel of host a accepts it", func() bool {
			l.forgeTooBig(2, 0, 1, 576)
			return l.knownMTU(t, l.Hosts[0].NS, l.underlay(1)) == 576
		})
		testkit.Eventually(t, "the node has refuted it", func() bool {
			if err := ping(l.pod(0), l.pod(1).Addr, 1472); err != nil {
				t.Fatalf("beside the forged error: %v", err)
			}
			p := l.daemons[0].status().Dataplane.Peers[0]
			return p.MTU == 0 && slices.ContainsFunc(p.Notes, func(n string) bool { return strings.Contains(n, "is ignored") })
		})
		if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
			t.Error(err)
		}
		if got := l.knownMTU(t, l.pod(0).NS, l.pod(1).Addr); got != 1472 {
			t.Errorf("the path MTU of pod-a is %d, want 1472", got)
		}
		if got := l.knownMTU(t, l.Hosts[0].NS, l.underlay(1)); got != 576 {
			t.Errorf("the path MTU in the kernel of host a is %d, so the test proves nothing", got)
		}
	})
}

// knownMTU returns the MTU of the path from ns to addr as its kernel knows it.
func (l *lab) knownMTU(t *testing.T, ns *netlab.Namespace, addr netip.Addr) int {
	t.Helper()
	conn, err := dialUDP(ns, netip.AddrPortFrom(addr, 9))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	mtu, err := getInt(conn, unix.IPPROTO_IP, unix.IP_MTU)
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}

// forgeTooBig sends, from host number from to host number victim, the ICMP errors that a
// router of a narrow path would send about datagrams of the tunnel to host number to.
func (l *lab) forgeTooBig(from, victim, to, mtu int) {
	l.t.Helper()
	var errs [][]byte
	ports := []uint16{udpPort}
	for i := range uint16(16) {
		ports = append(ports, 49152+i)
	}
	for _, port := range ports {
		quoted := udpPacket(netip.AddrPortFrom(l.underlay(victim), port), netip.AddrPortFrom(l.underlay(to), udpPort), make([]byte, 1472)).bytes()
		icmp := append([]byte{3, 4, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, quoted[:28]...)
		binary.BigEndian.PutUint16(icmp[2:], ^onesSum(icmp))
		errs = append(errs, packet{src: l.underlay(from), dst: l.underlay(victim), proto: unix.IPPROTO_ICMP, payload: icmp}.bytes())
	}
	sendRaw(l.t, l.Hosts[from].NS, l.underlay(victim), errs...)
}

// Below the floor of 1280 bytes a path is as narrow as probes find it.
//
//	pod-a ── host a ── host c, 1000 ── host b ── pod-b
func TestPodLearnsAPathMTUBelowTheFloor(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{Options: netlab.Options{Hosts: 3}}, func(t *testing.T, l *lab) {
		narrowings[1].do(l, 1000)
		l.expectPathMTU(t, l.pod(1).Addr, 1000-overheadOver(false))
	})
}

// What an administrator has set for a route needs no probe.
//
//	pod-a ── host a, route of MTU 1000 ── host b ── pod-b
func TestRouteOfAnAdministratorIsBelieved(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		narrowings[0].do(l, 1000)
		l.expectPathMTU(t, l.pod(1).Addr, 1000-overheadOver(false))
	})
}
