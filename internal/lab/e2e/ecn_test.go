package e2e

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// RFC 6040 §4.2, as far as a router on the underlay can cause it.
//
//	host a ── datagrams with an outer ECN field ── host b ── pod-b
func TestCongestionMarkOfTheUnderlayReachesThePod(t *testing.T) {
	t.Parallel()
	forUnderlays(t, labOptions{}, func(t *testing.T, l *lab) {
		arrivals := newTap(t, l.pod(1).NS, "eth0")
		forFamilies(t, l.pod(1), func(t *testing.T, dst netip.Addr) {
			from, to := netip.AddrPortFrom(ofFamily(l.pod(0), dst), 1000), netip.AddrPortFrom(dst, 2000)
			for _, c := range []struct{ inner, outer, want uint8 }{
				{ect0, ce, ce}, {ect1, ce, ce}, {ect0, ect0, ect0}, {ect0, ect1, ect1}, {ect0, notECT, ect0}, {ce, ect0, ce},
			} {
				p := udpPacket(from, to, []byte("marked"))
				p.tos = 46<<2 | c.inner
				sent := p.bytes()
				l.inject(0, 1, c.outer, sent)
				p.tos = 46<<2 | c.want
				want := afterHops(p.bytes(), 1)
				got := arrivals.next("packet", func(b []byte) bool { return source(b) == p.src })
				if !bytes.Equal(got, want) {
					t.Errorf("inner %d, outer %d: got\n% x\nwant\n% x", c.inner, c.outer, got, want)
				}
			}

			before := l.daemons[1].status().Drops.RX["congestion"]
			l.inject(0, 1, ce, udpPacket(from, to, []byte("not ECN-capable")).bytes())
			testkit.Eventually(t, "a marked packet whose sender does not support ECN is dropped and counted", func() bool {
				return l.daemons[1].status().Drops.RX["congestion"] == before+1
			})
		})
	})
}

// pod-a ── host a ── wire that marks 2 % ── host b ── pod-b
func TestTCPSlowsDownForMarksOnTheWireInsteadOfLosses(t *testing.T) {
	t.Parallel()
	impair := netlab.Impairment{Mark: 0.02, Seed: 1}
	forEngines(t, labOptions{Options: netlab.Options{Impair: &impair}}, func(t *testing.T, l *lab) {
		for _, p := range []*netlab.Pod{l.pod(0), l.pod(1)} {
			if err := p.NS.Sysctl("net/ipv4/tcp_ecn", "1"); err != nil {
				t.Fatal(err)
			}
		}
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			arrived := map[bool]string{true: "IpExtInCEPkts", false: "Ip6InCEPkts"}[addr.Is4()]
			const echoed = "TcpExtTCPDeliveredCE"
			echoedBefore, arrivedBefore := counters(t, l.pod(0).NS)[echoed], counters(t, l.pod(1).NS)[arrived]
			if err := (streams{flows: 2, up: 32 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
				t.Error(err)
			}
			if counters(t, l.pod(1).NS)[arrived] == arrivedBefore {
				t.Errorf("no marked packet reached pod-b; relay: %+v", l.Relay.Stats())
			}
			if counters(t, l.pod(0).NS)[echoed] == echoedBefore {
				t.Errorf("no mark was echoed to pod-a's TCP; relay: %+v", l.Relay.Stats())
			}
		})
		if n := l.daemons[1].status().Drops.RX["congestion"]; n > 0 {
			t.Errorf("%d packets dropped for congestion, although all marked packets are ECN-capable", n)
		}
	})
}
