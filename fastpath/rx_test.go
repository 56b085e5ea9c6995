package fastpath

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

const fromB = "192.0.2.2"

// newTestRX is an RX direction that writes to q.
func newTestRX(q *fakeQueue) *rx {
	return newRX(newShard(q, discard{}), make([]byte, normalFootprint.rxSlots*slotSize))
}

// tcpTrain is n segments of a TCP flow from peerB's pod to ours, size payload
// bytes each, the last of them last.
func tcpTrain(n, size, last int) (pkts [][]byte) {
	for i := range n {
		s := segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK, df: true,
			seq: uint32(1000 + i*size), id: uint16(i), payload: pattern(size)}
		if i == n-1 {
			s.payload = s.payload[:last]
		}
		pkts = append(pkts, s.bytes())
	}
	return pkts
}

// udpTrain is the same of UDP datagrams, each with a byte that distinguishes it from
// the others.
func udpTrain(n, size, last int) (pkts [][]byte) {
	for i := range n {
		s := segment{src: "10.5.2.9", dst: "10.5.1.9", df: true, id: uint16(i), payload: pattern(size)}
		s.payload[0] = byte(i)
		if i == n-1 {
			s.payload = s.payload[:last]
		}
		pkts = append(pkts, s.bytes())
	}
	return pkts
}

// train is pkts as one GRO train.
func train(pkts [][]byte) arrival {
	return arrival{from: fromB, b: slices.Concat(pkts...), segment: len(pkts[0])}
}

// samePackets compares packets, but for the ID of those with DF set, which the
// kernel numbers itself when it cuts a super-packet (RFC 6864 §4.1).
func samePackets(t *testing.T, got, want [][]byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d packets, want %d", len(got), len(want))
	}
	for i := range want {
		if err := verify(got[i]); err != nil {
			t.Errorf("packet %d: %v", i, err)
		}
		if g, w := withoutID(got[i]), withoutID(want[i]); !bytes.Equal(g, w) {
			t.Errorf("packet %d:\n% x, want\n% x", i, g[:min(60, len(g))], w[:min(60, len(w))])
		}
	}
}

func withoutID(pkt []byte) []byte {
	if pkt[0]>>4 == 4 && pkt[6]&0x40 != 0 {
		pkt = bytes.Clone(pkt)
		clear(pkt[4:6])
		clear(pkt[10:12])
	}
	return pkt
}

func TestTrainsAreCutAndJoined(t *testing.T) {
	for _, tt := range []struct {
		name   string
		pkts   [][]byte
		writes int
	}{
		{"one TCP segment", tcpTrain(1, 1400, 1400), 1},
		{"TCP", tcpTrain(10, 1400, 1400), 1},
		{"TCP, last shorter", tcpTrain(10, 1400, 1), 1},
		{"64 TCP segments", tcpTrain(45, 1380, 700), 1},
		{"UDP", udpTrain(10, 1200, 1200), 1},
		{"UDP, last shorter", udpTrain(10, 1200, 3), 1},
		{"64 small UDP datagrams", udpTrain(64, 30, 30), 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			r := newTestRX(q)
			arrive(t, r, train(tt.pkts))
			r.write()
			if len(q.writes) != tt.writes {
				t.Errorf("%d writes, want %d", len(q.writes), tt.writes)
			}
			samePackets(t, q.packets(t), tt.pkts)
			if n := r.c.Packets.Load(); n != uint64(len(tt.pkts)) {
				t.Errorf("counted %d packets", n)
			}
			if n := r.c.Bytes.Load(); n != uint64(len(slices.Concat(tt.pkts...))) {
				t.Errorf("counted %d bytes", n)
			}
		})
	}
}

func TestMessagesOfOneBatchAreJoined(t *testing.T) {
	q := new(fakeQueue)
	r := newTestRX(q)
	pkts := tcpTrain(8, 1000, 1000)
	arrive(t, r, train(pkts[:3]), arrival{from: fromB, b: pkts[3]}, train(pkts[4:]))
	r.write()
	if len(q.writes) != 1 {
		t.Errorf("%d writes", len(q.writes))
	}
	samePackets(t, q.packets(t), pkts)
}

func TestEachProtocolIsMergedOnItsOwnTerms(t *testing.T) {
	for _, tt := range []struct {
		tcp, udp bool
		writes   int
	}{
		{true, true, 2},
		{true, false, 1 + 5},
		{false, true, 5 + 1},
		{false, false, 5 + 5},
	} {
		q := new(fakeQueue)
		s := newShard(q, discard{})
		s.mergeTCP, s.mergeUDP = tt.tcp, tt.udp
		r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
		pkts := append(tcpTrain(5, 1000, 10), udpTrain(5, 1000, 10)...)
		arrive(t, r, train(pkts[:5]), train(pkts[5:]))
		r.write()
		if len(q.writes) != tt.writes {
			t.Errorf("TCP %t, UDP %t: %d writes, want %d", tt.tcp, tt.udp, len(q.writes), tt.writes)
		}
		samePackets(t, q.packets(t), pkts)
	}
}

func TestSegmentLargerThanTheMessageIsOnePacket(t *testing.T) {
	q := new(fakeQueue)
	r := newTestRX(q)
	pkts := udpTrain(1, 500, 500)
	arrive(t, r, arrival{from: fromB, b: pkts[0], segment: 40000})
	r.write()
	samePackets(t, q.packets(t), pkts)
}

func TestDamagedMessagesAreDropped(t *testing.T) {
	pkt := udpTrain(1, 500, 500)[0]
	short := pkt[:len(pkt)-1]
	for _, tt := range []struct {
		name   string
		a      arrival
		reason metrics.Drop
	}{
		{"empty", arrival{from: fromB}, metrics.DropMalformed},
		{"not IP", arrival{from: fromB, b: []byte("GET / HTTP/1.1\r\nHost: example.com\r\n")}, metrics.DropMalformed},
		{"cut short", arrival{from: fromB, b: short}, metrics.DropMalformed},
		{"bytes behind", arrival{from: fromB, b: append(bytes.Clone(pkt), 0)}, metrics.DropMalformed},
		{"MSG_TRUNC", arrival{from: fromB, b: pkt, flags: unix.MSG_TRUNC}, metrics.DropTruncated},
		{"MSG_CTRUNC", arrival{from: fromB, b: pkt, flags: unix.MSG_CTRUNC}, metrics.DropTruncated},
		{"control cut in the middle", arrival{from: fromB, b: pkt, control: received(arrival{segment: 100})[:unix.SizeofCmsghdr/2]}, metrics.DropTruncated},
		{"spoofed", arrival{from: "192.0.2.3", b: pkt}, metrics.DropSpoofedSource},
		{"from a stranger", arrival{from: "198.51.100.1", b: pkt}, metrics.DropUnknownPeer},
		{"congestion without ECN", arrival{from: fromB, b: pkt, tos: 3}, metrics.DropCongestion},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			r := newTestRX(q)
			good := tcpTrain(3, 700, 700)
			arrive(t, r, train(good[:1]), tt.a, train(good[1:]))
			r.write()
			samePackets(t, q.packets(t), good)
			if got := drops(r.c); len(got) != 1 || got[tt.reason] != 1 {
				t.Errorf("dropped %v, want 1 for %s", got, tt.reason)
			}
		})
	}
}

func TestBadPacketsOfATrainAreDroppedAlone(t *testing.T) {
	q := new(fakeQueue)
	r := newTestRX(q)
	pkts := udpTrain(6, 300, 300)
	sent := slices.Clone(pkts)
	sent[2] = segment{src: "10.5.3.9", dst: "10.5.1.9", payload: pattern(300)}.bytes()
	sent[4] = segment{src: "10.5.2.9", dst: "10.5.7.9", payload: pattern(300)}.bytes()
	arrive(t, r, train(sent))
	r.write()
	samePackets(t, q.packets(t), [][]byte{pkts[0], pkts[1], pkts[3], pkts[5]})
	if d := drops(r.c); d[metrics.DropSpoofedSource] != 1 || d[metrics.DropForeignDestination] != 1 || len(d) != 2 {
		t.Errorf("%v", d)
	}
}

// A packet is not trusted more because it continues one from another host.
func TestTrainThatContinuesAnothersIsDropped(t *testing.T) {
	for _, sent := range [][][]byte{tcpTrain(9, 700, 700), udpTrain(9, 700, 700)} {
		q := new(fakeQueue)
		r := newTestRX(q)
		forged := train(sent[3:6])
		forged.from = "192.0.2.3" // of peerC, which holds another subnet
		arrive(t, r, train(sent[:3]), forged, train(sent[6:]))
		r.write()
		samePackets(t, q.packets(t), slices.Concat(sent[:3], sent[6:]))
		if d := drops(r.c); d[metrics.DropSpoofedSource] != 3 || len(d) != 1 {
			t.Errorf("%v", d)
		}
	}
}

// A host without a lease costs one look-up for a message, whatever is in it.
func TestTrainsOfStrangersAreDroppedUnread(t *testing.T) {
	for _, tt := range []struct {
		name string
		a    arrival
		want uint64
	}{
		{"a train of good packets", arrival{b: slices.Concat(udpTrain(6, 300, 100)...), segment: 328}, 6},
		{"a train of single bytes", arrival{b: make([]byte, 64), segment: 1}, 64},
		{"a datagram", arrival{b: udpTrain(1, 300, 300)[0]}, 1},
		{"nothing", arrival{}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			r := newTestRX(q)
			tt.a.from = "198.51.100.1"
			good := tcpTrain(3, 700, 700)
			arrive(t, r, train(good[:1]), tt.a, train(good[1:]))
			lookups := r.check.resolver.hits + r.check.resolver.misses
			r.write()
			samePackets(t, q.packets(t), good)
			if d := drops(r.c); d[metrics.DropUnknownPeer] != tt.want || len(d) != 1 {
				t.Errorf("dropped %v, want %d from an unknown peer", d, tt.want)
			}
			if lookups != 2 {
				t.Errorf("%d inner sources were looked up, want those of the peer's 2 messages", lookups)
			}
		})
	}
}

func TestOuterCongestionMarkIsCarriedIn(t *testing.T) {
	for _, src := range [][2]string{{"10.5.2.9", "10.5.1.9"}, {"fd00:5:2::9", "fd00:5:1::9"}} {
		q := new(fakeQueue)
		r := newTestRX(q)
		var pkts, want [][]byte
		for i := range 3 {
			s := segment{src: src[0], dst: src[1], flags: tcpACK, df: true, tos: 0xa2, // AF, ECT(0)
				seq: uint32(i * 100), id: uint16(i), payload: pattern(100)}
			pkts = append(pkts, s.bytes())
			s.tos = 0xa3
			want = append(want, s.bytes())
		}
		a := train(pkts)
		a.tos = 3
		arrive(t, r, a)
		r.write()
		if len(q.writes) != 1 {
			t.Errorf("%d writes", len(q.writes))
		}
		samePackets(t, q.packets(t), want)
	}
}

func TestUnsegmentedSuperDatagramBecomesASuperPacket(t *testing.T) {
	for _, tt := range []struct {
		name    string
		partial bool
	}{{"complete checksum", false}, {"partial checksum", true}} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			r := newTestRX(q)
			s := segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK, df: true, payload: pattern(30000)}
			pkt := s.bytes()
			if tt.partial {
				pkt = superPacket(s, 1400)[tun.HeaderLen:]
			}
			arrive(t, r, arrival{from: fromB, b: pkt})
			r.write()
			if len(q.writes) != 1 {
				t.Fatalf("%d writes", len(q.writes))
			}
			var payload []byte
			for _, p := range q.packets(t) {
				if len(p) > int(r.shard.mtu) {
					t.Errorf("a packet of %d bytes over MTU %d", len(p), r.shard.mtu)
				}
				if err := verify(p); err != nil {
					t.Error(err)
				}
				payload = append(payload, p[40:]...)
			}
			if !bytes.Equal(payload, s.payload) {
				t.Error("another payload")
			}
		})
	}
	t.Run("wrong checksum", func(t *testing.T) {
		q := new(fakeQueue)
		r := newTestRX(q)
		pkt := segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK, payload: pattern(30000)}.bytes()
		pkt[1000]++
		arrive(t, r, arrival{from: fromB, b: pkt})
		r.write()
		if len(q.writes) != 0 || drops(r.c)[metrics.DropMalformed] != 1 {
			t.Errorf("%d writes, %v", len(q.writes), drops(r.c))
		}
	})
}

// However many packets are in a train, the kernel copies it in one piece, and does that
// much faster than a piece for each packet.
func TestReceivedTrainsAreWrittenInOnePiece(t *testing.T) {
	first, second := tcpTrain(44, 1380, 1380), udpTrain(40, 1200, 1)
	split := tcpTrain(40, 1000, 1000)
	for name, tt := range map[string]struct {
		as     []arrival
		pieces []int // vectors of each write: two of headers, and the payloads
	}{
		"TCP":           {[]arrival{train(first)}, []int{3}},
		"UDP":           {[]arrival{train(second)}, []int{3}},
		"one packet":    {[]arrival{train(first[:1])}, []int{2}},
		"in two trains": {[]arrival{train(split[:20]), train(split[20:])}, []int{4}},
		"three trains":  {[]arrival{train(first), train(second), train(second)}, []int{3, 3, 3}},
	} {
		q := new(fakeQueue)
		r := newTestRX(q)
		arrive(t, r, tt.as...)
		if err := r.write(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(q.pieces, tt.pieces) {
			t.Errorf("%s: writes of %v vectors, want %v", name, q.pieces, tt.pieces)
		}
	}
}

// refuseSuper is a device that accepts no super-packets.
func refuseSuper(b []byte) unix.Errno {
	var v tun.Header
	if v.Decode(b); v.GSOType != tun.GSONone {
		return unix.EINVAL
	}
	return 0
}

func TestRefusedSuperPacketIsWrittenSinglyAndNoMoreAreMade(t *testing.T) {
	q := &fakeQueue{refuse: refuseSuper}
	r := newTestRX(q)
	a, b, c := tcpTrain(5, 1000, 800), udpTrain(4, 500, 500), tcpTrain(3, 900, 900)
	arrive(t, r, train(a), train(b)) // two super-packets in one batch
	r.write()
	arrive(t, r, train(c))
	r.write()
	samePackets(t, q.packets(t), slices.Concat(a, b, c))
	if q.wrote != 2+12 {
		t.Errorf("%d attempts to write, want two refused and 12", q.wrote)
	}
	if !r.shard.mergeRefused.Load() {
		t.Error("the refusal is not reported")
	}
	if n, p := dropped(r.c), r.c.Packets.Load(); n != 0 || p != 12 {
		t.Errorf("%d dropped, %d written", n, p)
	}
}

func TestPacketThatTheDeviceRefusesIsCounted(t *testing.T) {
	q := &fakeQueue{}
	refused := 0
	q.refuse = func(b []byte) unix.Errno {
		if refused++; refused == 1 {
			return unix.EIO // the interface is down
		}
		return 0
	}
	r := newTestRX(q)
	pkts := tcpTrain(4, 100, 100)
	arrive(t, r, train(pkts[:3]))
	r.write()
	arrive(t, r, train(pkts[3:]))
	r.write()
	if d := drops(r.c); d[metrics.DropDeviceError] != 3 || len(d) != 1 {
		t.Errorf("%v", d)
	}
	samePackets(t, q.packets(t), pkts[3:])
	if r.shard.mergeRefused.Load() {
		t.Error("EIO turned merging off")
	}
}

func TestDeletedDeviceEndsRX(t *testing.T) {
	q := &fakeQueue{refuse: func([]byte) unix.Errno { return unix.EBADFD }}
	r := newTestRX(q)
	arrive(t, r, train(tcpTrain(2, 100, 100)))
	if err := r.write(); err == nil {
		t.Error("no error")
	}
}

func TestFullBatchIsWrittenAndPacketsGoOn(t *testing.T) {
	q := new(fakeQueue)
	r := newTestRX(q)
	var all [][]byte
	var as []arrival
	for i := range normalFootprint.rxSlots {
		// More packets than fit a batch, none of which can be joined.
		var pkts [][]byte
		for j := range 300 {
			pkts = append(pkts, segment{src: "10.5.2.9", dst: "10.5.1.9", df: true, tos: uint8(j%2) << 2,
				id: uint16(i), payload: []byte{byte(i), byte(j >> 8), byte(j)}}.bytes())
		}
		all = append(all, pkts...)
		as = append(as, train(pkts))
	}
	arrive(t, r, as...)
	r.write()
	samePackets(t, q.packets(t), all)
}

func TestSocketOverflowsAreCountedAcrossTheWrap(t *testing.T) {
	r := newTestRX(new(fakeQueue))
	pkt := udpTrain(1, 10, 10)[0]
	for _, step := range []struct {
		kernel uint32 // its count; 0: no control message
		total  uint64
	}{{0, 0}, {7, 7}, {7, 7}, {0, 7}, {0xfffffffe, 0xfffffffe}, {3, 0xfffffffe + 5}} {
		arrive(t, r, arrival{from: fromB, b: pkt, overflow: step.kernel})
		r.write()
		if n := r.shard.counters.SocketOverflows.Load(); n != step.total {
			t.Errorf("the kernel counts %d: counted %d, want %d", step.kernel, n, step.total)
		}
	}
}

func TestOverflowsOfAnEarlierProcessAreNotCountedAgain(t *testing.T) {
	r := newTestRX(new(fakeQueue))
	pkt := udpTrain(1, 10, 10)[0]
	for _, step := range []struct {
		kernel uint32
		total  uint64
	}{{900, 0}, {900, 0}, {905, 5}} {
		arrive(t, r, arrival{from: fromB, b: pkt, overflow: step.kernel})
		r.write()
		if n := r.shard.counters.SocketOverflows.Load(); n != step.total {
			t.Errorf("kernel says %d: counted %d, want %d", step.kernel, n, step.total)
		}
	}
}

func TestPeersCountWhatTheySent(t *testing.T) {
	b, c := NewPeer(peerB.Subnets, peerB.Endpoint), NewPeer(peerC.Subnets, peerC.Endpoint)
	s := newShard(new(fakeQueue), discard{})
	s.peers.Store(NewPeers(own, []*Peer{b, c}))
	r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
	pkts := udpTrain(5, 100, 100)
	arrive(t, r, train(pkts), arrival{from: "192.0.2.3", b: pkts[0]}, // spoofed
		arrival{from: "192.0.2.3", b: segment{src: "10.5.3.1", dst: "10.5.1.1", payload: pattern(10)}.bytes()})
	r.write()
	if n, bytes := b.Traffic.RXPackets.Load(), b.Traffic.RXBytes.Load(); n != 5 || bytes != 5*128 {
		t.Errorf("b: %d packets, %d bytes", n, bytes)
	}
	if n, bytes := c.Traffic.RXPackets.Load(), c.Traffic.RXBytes.Load(); n != 1 || bytes != 38 {
		t.Errorf("c: %d packets, %d bytes", n, bytes)
	}
	if n := b.Traffic.TXPackets.Load(); n != 0 {
		t.Errorf("b was sent %d", n)
	}
}

func TestCheckOffAdmitsAllThatIsWellFormed(t *testing.T) {
	q := new(fakeQueue)
	s := newShard(q, discard{})
	s.sourceCheck = CheckOff
	r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
	pkts := [][]byte{
		segment{src: "172.16.0.1", dst: "172.16.0.2", payload: pattern(99)}.bytes(),
		segment{src: "10.5.2.1", dst: "10.5.1.2", payload: pattern(98)}.bytes(),
	}
	arrive(t, r, arrival{from: "198.51.100.1", b: pkts[0]}, arrival{from: "198.51.100.1", b: pkts[1]},
		arrival{from: "198.51.100.1", b: pkts[1][1:]})
	r.write()
	samePackets(t, q.packets(t), pkts)
	if d := drops(r.c); d[metrics.DropMalformed] != 1 || len(d) != 1 {
		t.Errorf("%v", d)
	}
}

// FuzzDecapsulate takes whatever may come from the socket. Nothing makes it
// panic; what reaches the device has passed the checks and is what the kernel
// takes; each packet is written or counted as dropped.
func FuzzDecapsulate(f *testing.F) {
	tcp, udp := tcpTrain(4, 100, 60), udpTrain(4, 100, 60)
	f.Add(slices.Concat(tcp...), uint16(len(tcp[0])), uint8(0), uint8(0), uint8(0))
	f.Add(slices.Concat(udp...), uint16(len(udp[0])), uint8(0), uint8(3), uint8(1))
	f.Add(slices.Concat(udp[0], tcp[0]), uint16(len(udp[0])), uint8(1), uint8(0), uint8(2))
	f.Add(segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK, payload: pattern(3000)}.bytes(), uint16(0), uint8(0), uint8(0), uint8(0))
	f.Add(segment{src: "fd00:5:2::9", dst: "fd00:5:1::9", flags: tcpACK | tcpPSH, tos: 2, payload: pattern(99)}.bytes(), uint16(0), uint8(0), uint8(3), uint8(0))
	f.Add(segment{src: "10.5.9.9", dst: "10.5.1.9", payload: pattern(9)}.bytes(), uint16(0), uint8(2), uint8(0), uint8(1))
	f.Add([]byte{}, uint16(0), uint8(0), uint8(0), uint8(0))
	f.Add([]byte{0x45, 0, 0, 20}, uint16(1), uint8(0), uint8(0), uint8(0))
	f.Add(slices.Repeat(tcp[:1], 500)[0], uint16(7), uint8(0), uint8(0), uint8(0))

	froms := []string{fromB, "192.0.2.3", "198.51.100.1", "2001:db8::6"}
	q := new(fakeQueue)
	var rxs [3]*rx // one for each mode; they take long to make
	for mode := range rxs {
		s := newShard(q, discard{})
		s.sourceCheck = SourceCheck(mode)
		rxs[mode] = newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
	}
	f.Fuzz(func(t *testing.T, b []byte, size uint16, from, tos, mode uint8) {
		b = b[:min(len(b), maxTrain4)]
		r := rxs[mode%3]
		before := r.c.Packets.Load() + dropped(r.c)
		a := arrival{from: froms[int(from)%len(froms)], b: b, segment: int(size), tos: tos}
		// Twice: the second must find nothing of the first.
		for range 2 {
			q.writes = nil
			arrive(t, r, a)
			r.write()
			for _, w := range q.writes {
				pkts := [][]byte{w[tun.HeaderLen:]}
				if wroteSuper(w) {
					var err error
					if pkts, err = cut(w); err != nil {
						t.Fatalf("the device would refuse a write: %v", err)
					}
				}
				for _, p := range pkts {
					if err := mayPass(p, netip.MustParseAddr(a.from), r.shard.sourceCheck); err != nil {
						t.Fatalf("%v\n% x", err, p)
					}
				}
			}
		}
		pieces := 1
		if size > 0 && len(b) > 0 {
			pieces = (len(b) + int(size) - 1) / int(size)
		}
		if n := r.c.Packets.Load() + dropped(r.c) - before; n != uint64(2*pieces) {
			t.Errorf("%d packets arrived, %d were written or counted", 2*pieces, n)
		}
	})
}

func wroteSuper(w []byte) bool {
	var v tun.Header
	v.Decode(w)
	return v.GSOType != tun.GSONone
}

// mayPass checks a packet from a host against the nodes, the long way round.
func mayPass(pkt []byte, from netip.Addr, mode SourceCheck) error {
	var h encap.Header
	if !encap.Parse(pkt, &h) {
		return fmt.Errorf("malformed")
	}
	if mode == CheckOff {
		return nil
	}
	ours := slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Contains(h.Dst) })
	theirs := slices.ContainsFunc(nodes.All(), func(p *Peer) bool {
		return (mode == CheckInner || p.Endpoint.Addr() == from) &&
			slices.ContainsFunc(p.Subnets, func(s netip.Prefix) bool { return s.Contains(h.Src) })
	})
	if !ours || !theirs {
		return fmt.Errorf("%s to %s from %s: ours %t, theirs %t", h.Src, h.Dst, from, ours, theirs)
	}
	return nil
}
