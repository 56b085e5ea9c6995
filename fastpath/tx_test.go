package fastpath

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// newTestTX is a TX direction between q and a kernel that accepts everything.
func newTestTX(t testing.TB, q *fakeQueue) (*tx, *kernel) {
	k := &kernel{t: t, segments: maxSegmentsOld}
	return newTX(newShard(q, k), make([]byte, normalFootprint.txArena)), k
}

// transmit hands reads to x as run does, until the queue is empty.
func transmit(t testing.TB, x *tx, q *fakeQueue, reads ...[]byte) {
	t.Helper()
	q.reads, q.next = reads, 0
	for more := true; more; {
		var err error
		if _, more, err = x.poll(false); err != nil {
			t.Fatal(err)
		}
	}
}

// handle hands one read to x, as the first of a batch.
func handle(x *tx, b []byte) {
	n := copy(x.arena[headroom:], b)
	x.packet(x.arena, x.arena[headroom:][:n])
}

// toB is a TCP segment from a pod of ours to one of peerB's.
func toB(n int) segment {
	return segment{src: "10.5.1.9", dst: "10.5.2.9", flags: tcpACK, df: true, seq: 1 << 31, payload: pattern(n)}
}

func TestPacketIsSentAsItIs(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    segment
		peer *Peer
		tos  uint8
	}{
		{"TCP", toB(100), peerB, 0},
		{"UDP to another", segment{src: "10.5.1.9", dst: "10.5.3.9", payload: pattern(1)}, peerC, 0},
		{"IPv6 inside", segment{src: "fd00:5:1::9", dst: "fd00:5:2::9", tos: 0xb9, payload: pattern(77)}, peerB, 1},
		{"ECN without DSCP", segment{src: "10.5.1.9", dst: "10.5.2.9", tos: 0xba, payload: pattern(5)}, peerB, 2},
		{"empty datagram", segment{src: "10.5.1.9", dst: "10.5.2.9"}, peerB, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			x, k := newTestTX(t, q)
			pkt := tt.s.bytes()
			transmit(t, x, q, read(tun.Header{}, pkt))
			if want := []datagram{{tt.peer, tt.tos, string(pkt)}}; !slices.Equal(k.wire, want) {
				t.Errorf("sent %v, want %v", k.wire, want)
			}
		})
	}
}

func TestPartialChecksumIsCompleted(t *testing.T) {
	for _, src := range []segment{toB(333), {src: "fd00:5:1::9", dst: "fd00:5:2::9", payload: pattern(77)}} {
		q := new(fakeQueue)
		x, k := newTestTX(t, q)
		b := superPacket(src, 1400)
		var v tun.Header
		v.Decode(b)
		v.GSOType, v.GSOSize, v.HdrLen = tun.GSONone, 0, 0
		v.Encode(b)
		transmit(t, x, q, b)
		if len(k.wire) != 1 || k.wire[0].b != string(src.bytes()) {
			t.Errorf("%s: sent %d packets, or another one", src.src, len(k.wire))
		}
	}
}

func TestSuperPacketIsCutIntoTrains(t *testing.T) {
	for _, tt := range []struct {
		name   string
		s      segment
		n      int
		size   int
		trains int
	}{
		{"TCP", toB(0), 10 * 1400, 1400, 1},
		{"TCP, last shorter", toB(0), 9*1400 + 1, 1400, 1},
		{"TCP of 64 KiB", toB(0), 65495, 1400, 2}, // 47 · 1,440 bytes are more than 65,507
		{"TCP, small segments", toB(0), 5000, 10, 8},
		{"TCP, headers of more than the buffer's size", toB(0), 30000, 10, 48},
		{"TCP, headers that fit just so", toB(0), headroom / 40 * 700, 700, 2},
		{"TCP, one header more", toB(0), (headroom/40 + 1) * 700, 700, 3},
		{"TCP over IPv6", segment{src: "fd00:5:1::9", dst: "fd00:5:2::9", flags: tcpACK | tcpPSH}, 30000, 1380, 1},
		{"UDP", segment{src: "10.5.1.9", dst: "10.5.2.9"}, 64 * 500, 500, 1},
		{"UDP over IPv6", segment{src: "fd00:5:1::9", dst: "fd00:5:2::9", tos: 3}, 12345, 1000, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			x, k := newTestTX(t, q)
			tt.s.payload = pattern(tt.n)
			b := superPacket(tt.s, tt.size)
			want, err := cut(b)
			if err != nil && tt.s.flags == 0 {
				t.Fatal(err)
			}
			transmit(t, x, q, b)
			if len(k.wire) != len(want) {
				t.Fatalf("sent %d packets, want %d", len(k.wire), len(want))
			}
			for i, d := range k.wire {
				if d.b != string(want[i]) || d.peer != peerB || d.tos != tt.s.tos&3 {
					t.Fatalf("packet %d:\n% x, want\n% x", i, []byte(d.b)[:60], want[i][:60])
				}
			}
			if n := x.c.Datagrams.Load(); n != uint64(tt.trains) {
				t.Errorf("%d messages, want %d", n, tt.trains)
			}
		})
	}
}

// However large a super-packet is, its segments reach the kernel in one piece for each
// train, which it copies much faster than a header and a payload for each segment.
func TestTrainsOfASuperPacketLieInOnePiece(t *testing.T) {
	ipv6 := segment{src: "fd00:5:1::9", dst: "fd00:5:2::9", flags: tcpACK}
	for _, s := range []segment{toB(65000), ipv6} {
		s.payload = pattern(65000)
		q := new(fakeQueue)
		x, k := newTestTX(t, q)
		messages := 0
		k.script = func(msgs []message) (int, unix.Errno) {
			for _, m := range msgs {
				messages++
				if len(m.iov) != 1 {
					t.Errorf("%s: a message of %d packets lies in %d pieces", s.src, m.packets, len(m.iov))
				}
			}
			return len(msgs), 0
		}
		b := superPacket(s, 1400)
		transmit(t, x, q, b, b, b)
		if messages == 0 {
			t.Errorf("%s: nothing was sent", s.src)
		}
	}
}

// A super-packet of 64 KiB is a little more than fits one train.
func TestRestsOfSuperPacketsShareTrains(t *testing.T) {
	const reads, segments, size = 24, 46, 1420
	const trains = (reads*segments*(size+40) + 44*(size+40) - 1) / (44 * (size + 40)) // 45 · 1,460 bytes are more than 65,507
	for _, brief := range []bool{false, true} {
		q := new(fakeQueue)
		x, k := newTestTX(t, q)
		var want []datagram
		for i := range reads {
			s := toB(segments * size)
			s.seq = uint32(i * len(s.payload))
			b := superPacket(s, size)
			pkts, err := cut(b)
			if err != nil {
				t.Fatal(err)
			}
			q.reads = append(q.reads, b)
			for _, pkt := range pkts {
				want = append(want, datagram{peer: peerB, b: string(pkt)})
			}
		}
		for more := true; more; {
			var err error
			if _, more, err = x.poll(brief); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(k.wire, want) {
			t.Errorf("brief %v: %d packets sent, want %d, or others", brief, len(k.wire), len(want))
		}
		if n := x.c.Datagrams.Load(); n != trains {
			t.Errorf("brief %v: %d messages, want %d", brief, n, trains)
		}
	}
}

// stopping is a queue that stops the engine at a read, and always has more.
type stopping struct {
	fakeQueue
	stop *atomic.Bool
	b    []byte
	n    int // reads until then
	read int
}

func (q *stopping) Read(b []byte) (int, unix.Errno) {
	if q.read++; q.read == q.n {
		q.stop.Store(true)
	}
	return copy(b, q.b), 0
}

// Wherever in a batch the engine is stopped, everything that was read is sent.
func TestStopLeavesNothingBehind(t *testing.T) {
	for n := 1; n <= 9; n++ {
		k := &kernel{t: t, segments: maxSegmentsOld}
		q := &stopping{b: superPacket(toB(46*1420), 1420), n: n}
		x := newTX(newShard(q, k), make([]byte, normalFootprint.txArena))
		q.stop = x.shard.stopping
		l := &loop{turns: []turn{{direction: x}}, wake: newWaiter(-1), stopping: q.stop, c: new(metrics.Direction)}
		if err := l.run(); err != nil {
			t.Fatal(err)
		}
		if got := len(k.wire); got != 46*q.read || q.read < n {
			t.Errorf("stopped at read %d: %d packets sent of %d super-packets", n, got, q.read)
		}
	}
	// Between two batches.
	k := &kernel{t: t, segments: maxSegmentsOld}
	q := &endless{b: superPacket(toB(46*1420), 1420)}
	x := newTX(newShard(q, k), make([]byte, normalFootprint.txArena))
	k.script = func(msgs []message) (int, unix.Errno) {
		x.shard.stopping.Store(true)
		return len(msgs), 0
	}
	l := &loop{turns: []turn{{direction: x}}, wake: newWaiter(-1), stopping: x.shard.stopping, c: new(metrics.Direction)}
	if err := l.run(); err != nil {
		t.Fatal(err)
	}
	if n := len(k.wire); n == 0 || n%46 != 0 {
		t.Errorf("stopped between batches: %d packets sent, want whole super-packets", n)
	}
}

func TestEmptyFirstReadsAndManyBatchesKeepOrder(t *testing.T) {
	q := new(fakeQueue)
	x, k := newTestTX(t, q)
	rnd := rand.New(rand.NewPCG(1, 2))
	var reads [][]byte
	var want []string
	for i := range 300 {
		s := toB(1 + rnd.IntN(20000))
		s.seq = uint32(i) << 20
		if rnd.IntN(2) == 0 {
			s.dst = "10.5.3.1"
		}
		if len(s.payload) <= 1400 {
			reads = append(reads, read(tun.Header{}, s.bytes()))
			want = append(want, string(s.bytes()))
			continue
		}
		b := superPacket(s, 1400)
		reads = append(reads, b)
		pkts, err := cut(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pkts {
			want = append(want, string(p))
		}
	}
	transmit(t, x, q, reads...)
	var got []string
	for _, d := range k.wire {
		got = append(got, d.b)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d packets sent, want %d, or another order", len(got), len(want))
	}
}

func TestWhatTheDeviceCannotMeanIsDropped(t *testing.T) {
	good := superPacket(toB(5000), 1400)
	with := func(change func(v *tun.Header)) []byte {
		b := bytes.Clone(good)
		var v tun.Header
		v.Decode(b)
		change(&v)
		v.Encode(b)
		return b
	}
	for _, tt := range []struct {
		name string
		b    []byte
	}{
		{"nothing", nil},
		{"half a header", good[:tun.HeaderLen/2]},
		{"no packet", good[:tun.HeaderLen]},
		{"cut short", good[:len(good)-1]},
		{"unknown GSO type", with(func(v *tun.Header) { v.GSOType = 9 })},
		{"UFO", with(func(v *tun.Header) { v.GSOType = 3 /* VIRTIO_NET_HDR_GSO_UDP */ })},
		{"segments of 0 bytes", with(func(v *tun.Header) { v.GSOSize = 0 })},
		{"UDP GSO of TCP", with(func(v *tun.Header) { v.GSOType = tun.GSOUDPL4 })},
		{"checksum in the IP header", with(func(v *tun.Header) { v.CsumStart = 10 })},
		{"checksum behind the packet", with(func(v *tun.Header) { v.CsumStart = 60000 })},
		{"one packet, checksum behind it", with(func(v *tun.Header) { v.GSOType, v.CsumStart = tun.GSONone, 60000 })},
		{"one packet, checksum field behind it", with(func(v *tun.Header) { v.GSOType, v.CsumOffset = tun.GSONone, 65535 })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			x, k := newTestTX(t, q)
			pkt := toB(10).bytes()
			transmit(t, x, q, tt.b, read(tun.Header{}, pkt))
			if len(k.wire) != 1 || k.wire[0].b != string(pkt) {
				t.Errorf("sent %d packets, want the good one", len(k.wire))
			}
			if d := drops(x.c); d[metrics.DropMalformed] != 1 || len(d) != 1 {
				t.Errorf("%v", d)
			}
		})
	}
}

func TestPacketForAnUnknownSubnetIsAnsweredWithUnreachable(t *testing.T) {
	for _, tt := range []struct {
		name      string
		s         segment
		proto, at int
		want      []byte // type and code
	}{
		{"IPv4", segment{src: "10.5.1.9", dst: "10.5.99.9", payload: pattern(100)}, unix.IPPROTO_ICMP, 20, []byte{3, 0}},
		{"IPv6", segment{src: "fd00:5:1::9", dst: "fd00:5:99::9", payload: pattern(100)}, unix.IPPROTO_ICMPV6, 40, []byte{1, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := new(fakeQueue)
			x, k := newTestTX(t, q)
			transmit(t, x, q, read(tun.Header{}, tt.s.bytes()))
			if len(k.wire) != 0 || drops(x.c)[metrics.DropNoRoute] != 1 {
				t.Errorf("sent %d, %v", len(k.wire), drops(x.c))
			}
			pkts := q.packets(t)
			if len(pkts) != 1 {
				t.Fatalf("%d answers", len(pkts))
			}
			var h encap.Header
			if !encap.Parse(pkts[0], &h) || h.Dst != netip.MustParseAddr(tt.s.src) || int(h.Proto) != tt.proto ||
				!bytes.Equal(pkts[0][tt.at:tt.at+2], tt.want) {
				t.Errorf("% x", pkts[0])
			}
			if n := x.shard.counters.ICMPSent.Load(); n != 1 {
				t.Errorf("counted %d", n)
			}
		})
	}
}

func TestGSORefusalIsShown(t *testing.T) {
	q := new(fakeQueue)
	k := &kernel{t: t, segments: maxSegmentsOld, script: refuseTrains(unix.EIO)}
	x := newTX(newShard(q, k), make([]byte, normalFootprint.txArena))
	b := superPacket(toB(5000), 1400)
	want, err := cut(b)
	if err != nil {
		t.Fatal(err)
	}
	transmit(t, x, q, b, b)
	if len(k.wire) != 2*len(want) {
		t.Errorf("sent %d packets, want %d", len(k.wire), 2*len(want))
	}
	if n, errno := x.shard.counters.GSOFallbacks.Load(), unix.Errno(x.shard.gsoRefused.Load()); n != 1 || errno != unix.EIO {
		t.Errorf("counted %d, shown %v", n, errno)
	}
}

// endless is a queue that is never empty.
type endless struct {
	fakeQueue
	b []byte
}

func (q *endless) Read(b []byte) (int, unix.Errno) { return copy(b, q.b), 0 }

// TestStopUnderLoad: a direction that always finds work stops all the same.
func TestStopUnderLoad(t *testing.T) {
	q := &endless{b: read(tun.Header{}, toB(1000).bytes())}
	x := newTX(newShard(q, discard{}), make([]byte, normalFootprint.txArena))
	fd, peer := loopbackPair(t)
	r := newSockRX(fd)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { // a flood on the socket
		for ctx.Err() == nil {
			_ = unix.Sendto(peer.fd, q.b, unix.MSG_DONTWAIT, peer.name)
		}
	}()
	for name, d := range map[string]struct {
		direction direction
		fd        int
		stopping  *atomic.Bool
	}{
		"tx": {x, -1, x.shard.stopping},
		"rx": {r, fd, r.shard.stopping},
	} {
		l := &loop{
			turns: []turn{{direction: d.direction}}, wake: waiterFor(-1, d.fd, unix.POLLIN),
			stopping: d.stopping, c: new(metrics.Direction),
		}
		done := make(chan error, 1)
		go func() { done <- l.run() }()
		time.AfterFunc(20*time.Millisecond, func() { d.stopping.Store(true) })
		if err := testkit.Receive(t, name+" ends", done); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzTX takes whatever a TUN device may hand over. Nothing makes it panic;
// what is sent is an IP packet for the peer that it is sent to; each read is sent,
// answered or counted.
func FuzzTX(f *testing.F) {
	f.Add(superPacket(toB(5000), 1400))
	f.Add(superPacket(segment{src: "fd00:5:1::9", dst: "fd00:5:2::9", flags: tcpACK | tcpPSH, payload: pattern(3000)}, 1000))
	f.Add(superPacket(segment{src: "10.5.1.9", dst: "10.5.3.9", tos: 3, payload: pattern(2000)}, 7))
	f.Add(read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.2.9", payload: pattern(9)}.bytes()))
	f.Add(read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.99.9", payload: pattern(9)}.bytes()))
	f.Add(read(tun.Header{Flags: tun.FlagNeedsCsum, CsumStart: 20, CsumOffset: 6}, segment{src: "10.5.1.9", dst: "10.5.2.9", payload: pattern(9)}.bytes()))
	f.Add(read(tun.Header{GSOType: tun.GSOTCPv6, GSOSize: 1}, toB(99).bytes()))

	q := new(fakeQueue)
	x, k := newTestTX(f, q)
	f.Fuzz(func(t *testing.T, b []byte) {
		k.t, k.calls, k.wire, q.writes = t, 0, nil, nil
		x.shard.unreachables = budget{}
		before := x.c.Packets.Load() + dropped(x.c)
		transmit(t, x, q, b[:min(len(b), tun.ReadSize)])
		for _, d := range k.wire {
			var h encap.Header
			if !encap.Parse([]byte(d.b), &h) {
				t.Fatalf("sent something that is not a packet: % x", []byte(d.b))
			}
			if nodes.lookup(h.Dst) != d.peer || d.tos != h.TOS&3 {
				t.Fatalf("packet for %s with TOS %d was sent to %s with %d", h.Dst, h.TOS, d.peer.Endpoint, d.tos)
			}
		}
		for _, w := range q.packets(t) {
			var h encap.Header
			if !encap.Parse(w, &h) {
				t.Fatalf("answered something that is not a packet: % x", w)
			}
		}
		n := x.c.Packets.Load() + dropped(x.c) - before
		if n != max(1, uint64(len(k.wire))) {
			t.Errorf("%d sent, %v; counted %d", len(k.wire), drops(x.c), n)
		}
	})
}
