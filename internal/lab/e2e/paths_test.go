package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// nft adds a table with one chain of hook to ns, with these rules.
func nft(t testing.TB, ns *netlab.Namespace, chain string, rules ...string) {
	t.Helper()
	text := fmt.Sprintf("table inet test { chain c { type %s; %s; }; }", chain, strings.Join(rules, "; "))
	command(t, ns, "nft", text)
}

// A node that tracks connections reassembles the fragments of a datagram before it
// routes it, so the pod that sent them cannot do more.
//
//	pod-a ── host a, conntrack ── 1300 ── host b ── pod-b
func TestDatagramsThatConntrackPutTogetherCrossANarrowPath(t *testing.T) {
	forTunnels(t, labOptions{}, func(t *testing.T, l *lab) {
		nft(t, l.Hosts[0].NS, "filter hook forward priority 0", "ct state established,related counter accept")
		l.routeToB(0, netip.Addr{}, 1300)
		for _, addr := range []netip.Addr{l.pod(1).Addr, l.pod(1).Addr6} {
			if err := l.echoOf(addr, 1400, nil); err != nil {
				t.Error(err)
			}
		}
	})
}

// blackHole makes the path from host a to host b one of mtu bytes, on which host
// c sends no ICMP errors.
func (l *lab) blackHole(mtu int) {
	l.t.Helper()
	l.routeToB(2, netip.Addr{}, mtu)
	nft(l.t, l.Hosts[2].NS, "filter hook output priority 0", "meta l4proto icmp drop", "icmpv6 type packet-too-big drop")
	l.routeToB(0, l.underlay(2), 0)
}

// pod-a ── host a ── host c, 1300, silent ── host b ── pod-b
func TestPacketsThatMayBeFragmentedCrossAPathWithoutICMP(t *testing.T) {
	// Without probes, which would find the black hole in the end.
	forTunnels(t, labOptions{Options: netlab.Options{Hosts: 3}, flags: []string{"--mtu-probes=off"}}, func(t *testing.T, l *lab) {
		l.blackHole(1300)
		err := l.echoOf(l.pod(1).Addr, 1400, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// Packets that may not be fragmented are lost in a black hole until the node has found
// it; its pods then learn the size that passes. The node notices when the path is
// repaired.
//
//	pod-a ── host a ── host c, 1400, silent ── host b ── pod-b
func TestBlackHoleIsFoundAndItsEndNoticed(t *testing.T) {
	for _, u := range underlays {
		t.Run(u.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{ipv6Underlay: u.ipv6, Options: netlab.Options{Hosts: 3}})
			l.expectBlackHole(t, func() {})
		})
	}
}

// expectBlackHole checks that host a finds a path to host b that loses large packets, and
// notices its end. It calls limited while packets are kept smaller.
func (l *lab) expectBlackHole(t *testing.T, limited func()) {
	t.Helper()
	const width = 1400
	mtu := width - overheadOver(l.ipv6Underlay)
	l.blackHole(width)
	for _, addr := range []netip.Addr{l.pod(1).Addr, l.pod(1).Addr6} {
		if err := l.stream(addr, 1<<20, nil); err != nil {
			t.Error(err)
		}
	}
	testkit.Eventually(t, "status shows the size that passes", func() bool {
		_ = ping(l.pod(0), l.pod(1).Addr, 100)
		p := l.daemons[0].status().Dataplane.Peers[0]
		return p.MTU == mtu && len(p.Notes) > 0
	})
	l.expectPathMTU(t, l.pod(1).Addr, mtu)
	l.expectPathMTU(t, l.pod(1).Addr6, mtu)
	if n := l.daemons[0].status().Dataplane.Peers[1].MTU; n != 0 {
		t.Errorf("packets to host c are limited to %d bytes", n)
	}
	limited()
	command(t, l.Hosts[2].NS, "nft", "delete table inet test")
	l.routeToB(2, netip.Addr{}, 0)
	testkit.Eventually(t, "the limit is gone", func() bool {
		_ = ping(l.pod(0), l.pod(1).Addr, 100)
		return l.daemons[0].status().Dataplane.Peers[0].MTU == 0
	})
}

// The kernel learns no path MTU below net.ipv4.route.min_pmtu, 552.
//
//	pod-a ── host a ── host c, 400 ── host b ── pod-b
func TestPacketsOfEverySizeCrossAVeryNarrowPath(t *testing.T) {
	// Without probes, which would find the width of the path in the end.
	forTunnels(t, labOptions{Options: netlab.Options{Hosts: 3}, flags: []string{"--mtu-probes=off"}}, func(t *testing.T, l *lab) {
		l.expectVeryNarrowPath(t)
	})
}

// expectVeryNarrowPath checks that packets cross a path from host a to host b that is
// narrower than its kernel can learn.
func (l *lab) expectVeryNarrowPath(t *testing.T) {
	t.Helper()
	l.routeToB(2, netip.Addr{}, 400)
	l.routeToB(0, l.underlay(2), 0)
	for _, size := range []int{300, 400, 450, 500} {
		if err := l.pingUntil(0, 1, size); err != nil {
			t.Errorf("%d bytes, DF: %v", size, err)
		}
	}
}

// pingUntil sends packets with DF of size bytes from pod number i to pod number j
// until one is answered.
func (l *lab) pingUntil(i, j, size int) (err error) {
	testkit.Within(testkit.Patience, func() bool {
		err = pingWithin(time.Second, l.pod(i), l.pod(j).Addr, size)
		return err == nil
	})
	return err
}

// sentFrom reports whether packets of host number i to its peer go from the
// network's port: because status says so about the peer, or because host i has no
// other.
func (l *lab) sentFrom(i int) bool {
	for _, o := range l.daemons[i].status().Dataplane.Offloads {
		if o.Name == "source-ports" && !o.InForce {
			return true
		}
	}
	return slices.ContainsFunc(l.daemons[i].status().Dataplane.Peers[0].Notes, func(note string) bool {
		return strings.Contains(note, fmt.Sprintf("sent from port %d", udpPort))
	})
}

// Hosts that accept only answers to what they have sent let stock flannel through,
// which sends from the port that it receives on.
//
//	pod-a ── host a, answers only ── host b, answers only ── pod-b
func TestHostsThatTakeAnswersOnlyReachEachOther(t *testing.T) {
	forEngines(t, labOptions{idle: true}, func(t *testing.T, l *lab) {
		for _, h := range l.Hosts {
			nft(t, h.NS, "filter hook input priority 0", "iifname eth0 ct state established,related accept", "iifname eth0 meta l4proto udp drop")
		}
		l.start()
		errs := make(chan error)
		go func() { errs <- l.pingUntil(0, 1, 100) }()
		go func() { errs <- l.pingUntil(1, 0, 100) }()
		for range 2 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		testkit.Eventually(t, "status says which port is used", func() bool { return l.sentFrom(0) && l.sentFrom(1) })
	})
}

// A node behind masquerade is reached by those that it has sent to, from the port
// that it has sent to. Its lease has the address that they see.
//
//	pod-a ── host a ── host c, masquerade ── host b ── pod-b
func TestNodeBehindMasqueradeIsReached(t *testing.T) {
	opts := labOptions{idle: true, nodes: 2, Options: netlab.Options{Hosts: 3}}
	forEngines(t, opts, func(t *testing.T, l *lab) {
		a, c := l.Hosts[0], l.Hosts[2]
		leases := l.leases()[:2]
		leases[0].PublicIP = c.Addr
		l.setLeases(leases)
		l.daemons[0].args = append(l.daemons[0].args, "--public-ip="+c.Addr.String())
		testkit.Must(t, c.NS.Sysctl("net/ipv4/conf/all/send_redirects", "0"), c.NS.Sysctl("net/ipv4/conf/eth0/send_redirects", "0"))
		nft(t, c.NS, "nat hook postrouting priority 100", "ip saddr "+a.Addr.String()+" masquerade")
		l.routeToB(0, c.Addr, 0)
		l.start()
		if err := l.pingUntil(0, 1, 100); err != nil {
			t.Error(err)
		}
		testkit.Eventually(t, "status says which port is used", func() bool { return l.sentFrom(0) && l.sentFrom(1) })
	})
}

// A flow in one direction only, such as a stream of video, does not show whether
// the peer's packets arrive, so the node sends the peer an echo request, which its kernel
// answers. Otherwise each such flow would change its source port every few seconds, which
// reorders packets.
func TestOneWayTrafficIsNotTakenForSilence(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		testkit.Must(t, acquaint(l.pod(0), addr))
		server, err := listenUDP(l.pod(1).NS, netip.AddrPortFrom(addr, 0))
		testkit.Must(t, err)
		defer server.Close()
		client, err := dialUDP(l.pod(0).NS, addrPort(server))
		testkit.Must(t, err)
		defer client.Close()
		heard := func() uint64 { return l.daemons[0].status().Dataplane.Peers[0].RXPackets }
		before := heard()
		testkit.Eventually(t, "the peer answers, though nothing in the pod does", func() bool {
			_, err := client.Write([]byte("one way"))
			testkit.Must(t, err)
			return heard() >= before+3
		})
		if l.sentFrom(0) {
			t.Error("packets are sent from the network's port")
		}
	})
}

// Between nodes without obstacles, packets keep the ports of the shards.
func TestOwnPortsAreKeptWhereTheyWork(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	tap := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink)
	for range 20 {
		testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 100))
	}
	if l.sentFrom(0) || l.sentFrom(1) {
		t.Errorf("from the network's port: %v, %v", l.sentFrom(0), l.sentFrom(1))
	}
	go func() { _ = ping(l.pod(0), l.pod(1).Addr, 100) }()
	tap.next("datagram from a port of a shard", func(b []byte) bool {
		_, _, ok := tunnelled(b)
		return ok && b[9] == unix.IPPROTO_UDP && int(b[20])<<8|int(b[21]) >= 49152
	})
}
