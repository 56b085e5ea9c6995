package fastpath

import (
	"net/netip"
	"testing"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// The kernel has 1300 for the path, which is below the floor. What becomes of that?
func TestPathMTUBelowTheFloorIsDecidedByProbes(t *testing.T) {
	const ofKernel, ticks = 1300, doubtTicks + 2*probeEvery
	for _, tt := range []struct {
		name   string
		net    hole
		route  int // MTU of the route
		floor  int
		want   verdict
		widest int
	}{
		{"a claim that probes refute", hole{mtu: int(testMTU)}, 0, 1310, refuted, 0},
		{"a path that is even narrower", hole{mtu: 900}, 0, 1310, refuted, 900},
		{"a path that is as narrow", hole{mtu: ofKernel - 28}, 0, 1310, refuted, ofKernel - 28},
		{"a peer that answers no probes", hole{silent: true}, 0, 1310, accepted, 0},
		{"a route of the administrator", hole{mtu: int(testMTU)}, ofKernel, 1310, accepted, 0},
		{"a claim above the floor", hole{mtu: int(testMTU)}, 0, 1300, trusted, 0},
		{"no floor", hole{mtu: int(testMTU)}, 0, 0, trusted, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netlabtest.Inside(t, func(*netlab.Namespace) {
				narrow(t, "203.0.113.1")
				p := NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, netip.MustParseAddrPort("203.0.113.1:8285"))
				peers := NewPeers([]netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, []*Peer{p})
				x := newPaths(netip.MustParseAddr("127.0.0.1"), testMTU, func() *Peers { return peers }, nil)
				defer x.close()
				x.floor, x.routeMTU = tt.floor, func(netip.Addr) int { return tt.route }
				x.probes = tt.net.prober()
				p.Traffic.TXPackets.Add(1)
				x.look()
				if got := p.path.limits.load().kernel(); tt.want == refuted && got != doubted {
					t.Errorf("verdict %d before there is a result, want %d", got, doubted)
				}
				for range ticks {
					p.Traffic.TXPackets.Add(1)
					x.look()
				}
				if got := p.path.limits.load().kernel(); got != tt.want || p.Widest() != tt.widest {
					t.Errorf("verdict %d, packets limited to %d bytes; want %d, %d", got, p.Widest(), tt.want, tt.widest)
				}
				// The kernel forgets it.
				x.floor = min(x.floor, 1)
				x.look()
				if got := p.path.limits.load().kernel(); tt.floor > 0 && got != trusted {
					t.Errorf("verdict %d after that", got)
				}
			})
		})
	}
}

// While a claim is doubted nothing is lost, and no pod learns it; when it is refuted,
// packets are sent as if there were none.
func TestDoubtedPathMTUReachesNoPod(t *testing.T) {
	h := newHarness(t, 64, false)
	p := NewPeer(nil, peerB.Endpoint)
	h.exceptions.shard.floor = 1280
	h.path, h.kernel.script = 576, fits(576-28, 0)
	for _, v := range []verdict{trusted, doubted} {
		p.path.limits.setKernel(v)
		h.queue.writes, h.kernel.wire = nil, nil
		pkt := segment{src: "10.5.1.9", dst: "10.5.2.9", df: true, flags: tcpACK, payload: pattern(1200)}.bytes()
		h.add(p, way{}, pkt)
		h.flush()
		if len(h.kernel.wire) != 1 || len(h.queue.writes) != 0 {
			t.Errorf("verdict %d: %d packets on the wire, %d ICMP errors; want the packet and no error", v, len(h.kernel.wire), len(h.queue.writes))
		}
	}
	p.path.limits.setKernel(refuted)
	x, _ := newTestTX(t, new(fakeQueue))
	s := toB(100)
	s.df = true
	var header encap.Header
	b := s.bytes()
	if !encap.Parse(b, &header) {
		t.Fatal("no packet")
	}
	if w := x.way(p, b, &header, len(b)); !w.direct || w.fragment || w.wide {
		t.Errorf("refuted: sent %+v", w)
	}
}
