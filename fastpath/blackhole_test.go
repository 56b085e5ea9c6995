package fastpath

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/tun"
)

// hole is a network that carries packets of up to mtu bytes and returns no errors.
type hole struct {
	mtu    int
	silent bool
	loses  func() bool // packets of any size, if not nil
	sizes  []int       // of the packets sent
	back   []uint16    // answers under way
	from   netip.Addr  // of a host that answers in the place of the peer, if valid
}

// prober returns a prober in the network.
func (h *hole) prober() *prober {
	return &prober{
		send: func(_ netip.Addr, size int, number uint16) {
			h.sizes = append(h.sizes, size)
			if size <= h.mtu && !h.silent && (h.loses == nil || !h.loses()) {
				h.back = append(h.back, number)
			}
		},
		answers: func(got func(netip.Addr, uint16)) {
			for _, number := range h.back {
				from := netip.MustParseAddr("10.5.2.0")
				if h.from.IsValid() {
					from = h.from
				}
				got(from, number)
			}
			h.back = nil
		},
		close: func() error { return nil }, log: slog.New(slog.DiscardHandler), waiting: make(map[uint16]probe),
	}
}

// probed lets x probe peers for n ticks, in which they are used or not. 1472 bytes
// should pass.
func probed(x *prober, n int, used bool, peers ...*Peer) {
	for range n {
		x.receive(peers)
		for _, p := range peers {
			x.tick(p, netip.MustParseAddr("10.5.2.0"), used, func() int { return int(testMTU) })
		}
	}
}

func newTestPeer() *Peer { return NewPeer(nil, netip.MustParseAddrPort("192.0.2.2:8285")) }

// found is how many ticks it takes to find a black hole, and heals how many to find
// that there is no longer one.
const found, heals = 20, probeNarrow + 5

func TestLargestPacketThatPassesABlackHoleIsFound(t *testing.T) {
	for _, mtu := range []int{probeSmall, 49, 100, 552, 1271, 1272, 1300, 1470, 1471} {
		h, p := &hole{mtu: mtu}, newTestPeer()
		x := h.prober()
		probed(x, found, true, p)
		if p.Widest() != mtu {
			t.Errorf("%d bytes pass, %d found", mtu, p.Widest())
		}
		for _, next := range []int{1400, 1000, 1001, 999} {
			h.mtu = next
			probed(x, heals+found, true, p)
			if p.Widest() != next {
				t.Errorf("%d bytes pass, then %d, %d found", mtu, next, p.Widest())
			}
		}
		h.mtu = int(testMTU)
		probed(x, heals, true, p)
		if p.Widest() != 0 {
			t.Errorf("full-size packets pass again, but packets are limited to %d bytes", p.Widest())
		}
		if len(x.waiting) > 2*probeSteps {
			t.Errorf("%d probes are waited for", len(x.waiting))
		}
	}
}

func TestPathThatCarriesEverythingIsProbedRarely(t *testing.T) {
	h, p := &hole{mtu: int(testMTU)}, newTestPeer()
	probed(h.prober(), 100, true, p)
	if p.Widest() != 0 || len(h.sizes) > 2*100/probeEvery {
		t.Errorf("limited to %d, %d probes in 100 ticks", p.Widest(), len(h.sizes))
	}
}

// An answer that another host makes up counts as none.
func TestOnlyThePeerAnswersProbes(t *testing.T) {
	h, p := &hole{mtu: 1300, from: netip.MustParseAddr("198.51.100.1")}, newTestPeer()
	x := h.prober()
	probed(x, 100, true, p)
	if p.Widest() != 0 {
		t.Errorf("limited to %d by the answers of another host", p.Widest())
	}
	h.from = netip.Addr{}
	probed(x, found+probeEvery, true, p)
	if p.Widest() != 1300 {
		t.Errorf("limited to %d once the peer answers", p.Widest())
	}
}

func TestNothingIsConcludedFromSilence(t *testing.T) {
	h, p := &hole{mtu: 1300}, newTestPeer()
	x := h.prober()
	probed(x, 8, true, p) // in the middle of the search
	h.silent = true
	probed(x, 100, true, p)
	if p.Widest() != 0 {
		t.Errorf("limited to %d", p.Widest())
	}
	h.silent = false
	probed(x, found+probeEvery, true, p)
	if p.Widest() != 1300 {
		t.Errorf("limited to %d once probes are answered", p.Widest())
	}
	h.silent = true
	probed(x, 100, true, p)
	if p.Widest() != 1300 {
		t.Errorf("limited to %d without answers", p.Widest())
	}
}

// TestLossIsNoBlackHole: a limit that losses have caused is removed again.
func TestLossIsNoBlackHole(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		h, p := &hole{mtu: int(testMTU), loses: func() bool { return rnd.IntN(5) == 0 }}, newTestPeer()
		x := h.prober()
		limited := 0
		for range 100 {
			probed(x, 10, true, p)
			if p.Widest() != 0 {
				limited++
			}
		}
		if limited > 50 {
			t.Errorf("seed %d: limited %d of 100 times with a loss of 20 %%", seed, limited)
		}
		h.loses = nil
		probed(x, heals, true, p)
		if p.Widest() != 0 {
			t.Errorf("seed %d: limited to %d without loss", seed, p.Widest())
		}
	}
}

func TestIdlePeerIsNotProbed(t *testing.T) {
	h, p := &hole{mtu: 1300}, newTestPeer()
	probed(h.prober(), 100, false, p)
	if len(h.sizes) > 0 {
		t.Errorf("%d probes", len(h.sizes))
	}
}

func TestProbesAreNoUseOfAPeer(t *testing.T) {
	h := &hole{mtu: int(testMTU)}
	p := NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, netip.MustParseAddrPort("192.0.2.2:8285"))
	peers := NewPeers([]netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}, []*Peer{p})
	x := newPaths(netip.MustParseAddr("127.0.0.1"), testMTU, func() *Peers { return peers }, nil)
	defer x.close()
	x.probes = h.prober()
	send := x.probes.send
	x.probes.send = func(to netip.Addr, size int, number uint16) {
		p.Traffic.TXPackets.Add(1)
		send(to, size, number)
	}
	p.Traffic.TXPackets.Add(1)
	for range 10 * probeEvery {
		x.look()
	}
	if len(h.sizes) != 2 {
		t.Errorf("%d probes after one packet, want one round of 2", len(h.sizes))
	}
}

// TestNarrowPathOfTheKernelIsNoBlackHole: what the kernel learns in the meantime
// counts.
func TestNarrowPathOfTheKernelIsNoBlackHole(t *testing.T) {
	h, p := &hole{mtu: 1272}, newTestPeer()
	x := h.prober()
	tick := func(n, widest int) {
		for range n {
			x.receive([]*Peer{p})
			x.tick(p, netip.MustParseAddr("10.5.2.0"), true, func() int { return widest })
		}
	}
	tick(2, 1472)
	tick(100, 1272)
	if p.Widest() != 0 {
		t.Errorf("limited to %d, which the kernel knows", p.Widest())
	}
	tick(found+probeEvery, 1472)
	if p.Widest() != 1272 {
		t.Errorf("limited to %d once the kernel has forgotten it", p.Widest())
	}
	tick(heals, 1200)
	if p.Widest() != 0 {
		t.Errorf("limited to %d, and the kernel knows 1200", p.Widest())
	}
}

func TestProbesAreBounded(t *testing.T) {
	h := &hole{mtu: 1300}
	x := h.prober()
	var peers []*Peer
	for range 1000 {
		peers = append(peers, newTestPeer())
	}
	probed(x, 1, true, peers...)
	if len(h.sizes) > 2*probesAtOnce {
		t.Errorf("%d probes in a tick", len(h.sizes))
	}
	probed(x, 2000, true, peers...)
	for i, p := range peers {
		if p.Widest() != 1300 {
			t.Fatalf("peer %d: limited to %d", i, p.Widest())
		}
	}
	probed(x, 1, true, peers[:10]...) // the others have gone
	probed(x, 3, false)
	if len(x.waiting) > 0 {
		t.Errorf("%d probes of peers that have gone are waited for", len(x.waiting))
	}
}

// A packet that would vanish in a black hole is handled as one that the kernel refuses
// as too big; a probe is not.
func TestPacketTooLargeForABlackHoleIsAnswered(t *testing.T) {
	const widest, probeID = 1000, 77
	mtu := encap.TunnelMTU(widest)
	for _, tt := range []struct {
		name string
		read []byte
		sent int  // packets that leave, and
		df   bool // whether they have DF
		icmp bool // the sender gets an error
	}{
		{"fits", read(tun.Header{}, toB(widest-40).bytes()), 1, true, false},
		{"TCP", read(tun.Header{}, toB(widest-39).bytes()), 0, false, true},
		{"TCP super-packet", superPacket(toB(5000), 1400), 0, false, true},
		{"TCP super-packet of small segments", superPacket(toB(5000), 500), 10, true, false},
		{"UDP", read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.2.9", df: true, payload: pattern(1200)}.bytes()), 1, false, true},
		{"UDP that may be fragmented", read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.2.9", payload: pattern(1200)}.bytes()), 1, false, false},
		{"to another peer", read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.3.9", df: true, payload: pattern(1200)}.bytes()), 1, true, false},
		{"echo request of a pod", read(tun.Header{}, echoWith(1, 1200)), 1, false, true},
		{"probe", read(tun.Header{}, echoWith(probeID, 1200)), 1, true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := &fakeQueue{reads: [][]byte{tt.read}}
			k := &kernel{t: t, segments: maxSegmentsOld}
			var fragments []bool
			k.script = func(msgs []message) (int, unix.Errno) {
				for i := range msgs {
					for range msgs[i].packets {
						fragments = append(fragments, msgs[i].fragment)
					}
				}
				return len(msgs), 0
			}
			s := newShard(q, k)
			s.probeID, s.local = probeID, netip.MustParseAddr("127.0.0.1")
			b := NewPeer(peerB.Subnets, netip.MustParseAddrPort("127.0.0.2:8285"))
			b.path.limits.setWidest(widest)
			s.peers.Store(NewPeers(own, []*Peer{b, peerC}))
			x := newTX(s, make([]byte, normalFootprint.txArena))
			x.sends.exceptions.pathMTU = func(*Peer) (int, error) { return 1500, nil }
			transmit(t, x, q, tt.read)
			if len(fragments) != tt.sent || tt.sent > 0 && fragments[0] == tt.df {
				t.Errorf("sent with fragments allowed: %v, want %d with DF %t", fragments, tt.sent, tt.df)
			}
			if got := s.counters.ICMPSent.Load() > 0; got != tt.icmp {
				t.Errorf("ICMP error sent: %t, want %t", got, tt.icmp)
			}
			for _, b := range q.writes {
				if got := fmt.Sprint(b[tun.HeaderLen+26 : tun.HeaderLen+28]); got != fmt.Sprint([]byte{byte(mtu >> 8), byte(mtu)}) {
					t.Errorf("MTU in the error: %s, want %d", got, mtu)
				}
			}
		})
	}
}

// echoWith is an echo request from a pod of ours to one of peerB's.
func echoWith(id byte, size int) []byte {
	b := encap.Echo(make([]byte, size), netip.MustParseAddr("10.5.1.9"), netip.MustParseAddr("10.5.2.9"), size)
	b[20+5] = id
	return b
}
