package fastpath

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// seen is a packet that a capture has seen.
type seen struct {
	CapturedPacket
	bytes []byte
}

// drain returns what c has seen since the last call.
func drain(t testing.TB, c *Capture) (all []seen) {
	t.Helper()
	if err := c.Drain(func(p *CapturedPacket) error {
		all = append(all, seen{*p, bytes.Clone(p.Data)})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// capture starts a capture of the packets of s.
func capture(t testing.TB, s *shard, o CaptureOptions) *Capture {
	t.Helper()
	c, err := s.tap.taps.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sendAll passes everything that is in the queue of x on.
func forwardTX(t testing.TB, x *tx) {
	t.Helper()
	for more := true; more; {
		var err error
		if _, more, err = x.poll(false); err != nil {
			t.Fatal(err)
		}
	}
}

// receiveAll passes what arrives on.
func forwardRX(t testing.TB, r *rx, as ...arrival) {
	t.Helper()
	r.tap.use()
	arrive(t, r, as...)
	if err := r.write(); err != nil {
		t.Fatal(err)
	}
}

// A packet is captured as it is in its datagram: that is what the other node captures
// too, and what a limit of the path applies to.
func TestCaptureSeesSentPacketsAsTheyAreInDatagrams(t *testing.T) {
	k := &kernel{t: t, segments: maxSegmentsOld}
	whole := toB(40).bytes()
	x := newTX(newShard(&fakeQueue{reads: [][]byte{superPacket(toB(60000), 1400), read(tun.Header{}, whole)}}, k), make([]byte, normalFootprint.txArena))
	c := capture(t, x.shard, CaptureOptions{})
	forwardTX(t, x)
	got := drain(t, c)
	if len(got) != len(k.wire) || len(got) < 40 {
		t.Fatalf("%d packets captured, %d on the wire", len(got), len(k.wire))
	}
	for i, p := range got {
		if string(p.bytes) != k.wire[i].b || p.Length != len(p.bytes) || !p.Out || p.Drop != metrics.NumDrops || p.Outer != peerB.addr() || p.Lost != 0 {
			t.Errorf("packet %d: %+v, %d bytes; on the wire %d", i, p.CapturedPacket, len(p.bytes), len(k.wire[i].b))
		}
		if i > 0 && p.Time.Before(got[i-1].Time) {
			t.Errorf("packet %d was seen %s before the one that precedes it", i, got[i-1].Time.Sub(p.Time))
		}
	}
}

func TestCaptureSeesReceivedPacketsAsTheyCame(t *testing.T) {
	r := newRX(newShard(&fakeQueue{}, discard{}), make([]byte, normalFootprint.rxSlots*slotSize))
	c := capture(t, r.shard, CaptureOptions{})
	pkts := tcpTrain(40, 1400, 700) // one write to the device
	forwardRX(t, r, train(pkts))
	got := drain(t, c)
	if len(got) != len(pkts) {
		t.Fatalf("%d packets captured of %d", len(got), len(pkts))
	}
	for i, p := range got {
		if !bytes.Equal(p.bytes, pkts[i]) || p.Out || p.Drop != metrics.NumDrops || p.Outer != peerB.addr() {
			t.Errorf("packet %d: %+v", i, p.CapturedPacket)
		}
	}
}

func TestCaptureSeesThePacketsOfARefusedSuperPacket(t *testing.T) {
	q := &fakeQueue{refuse: refuseSuper}
	r := newTestRX(q)
	c := capture(t, r.shard, CaptureOptions{})
	pkts := tcpTrain(30, 1400, 700)
	forwardRX(t, r, train(pkts))
	var got [][]byte
	for _, p := range drain(t, c) {
		got = append(got, p.bytes)
	}
	samePackets(t, got, pkts)
	samePackets(t, q.packets(t), pkts)
}

// TestCaptureNamesTheReasonOfEachDrop drops a packet for every reason for which there is
// one, in each direction.
func TestCaptureNamesTheReasonOfEachDrop(t *testing.T) {
	good := toB(40)
	stray := good
	stray.dst = "203.0.113.9"
	refusing := func(errno unix.Errno) *kernel {
		return &kernel{t: t, segments: maxSegmentsOld, script: func([]message) (int, unix.Errno) { return 0, errno }}
	}
	for reason, x := range map[metrics.Drop]struct {
		read []byte
		to   sender
	}{
		metrics.DropMalformed: {read(tun.Header{}, good.bytes()[:30]), discard{}},
		metrics.DropNoRoute:   {read(tun.Header{}, stray.bytes()), discard{}},
		metrics.DropTooBig:    {read(tun.Header{}, good.bytes()), refusing(unix.EMSGSIZE)},
		metrics.DropNoBuffer:  {read(tun.Header{}, good.bytes()), refusing(unix.ENOBUFS)},
		metrics.DropSendError: {read(tun.Header{}, good.bytes()), refusing(unix.EPERM)},
	} {
		s := newShard(&fakeQueue{reads: [][]byte{x.read}}, x.to)
		dir := newTX(s, make([]byte, normalFootprint.txArena))
		dir.sends.exceptions.pathMTU = func(*Peer) (int, error) { return 1500, nil }
		c := capture(t, s, CaptureOptions{Drops: []metrics.Drop{reason}})
		forwardTX(t, dir)
		got := drain(t, c)
		if len(got) != 1 || got[0].Drop != reason || !got[0].Out || !bytes.Equal(got[0].bytes, x.read[tun.HeaderLen:]) {
			t.Errorf("sent, %s: captured %+v", reason, got)
		}
	}

	spoofed, foreign := good, good
	spoofed.src, spoofed.dst = "10.5.3.9", "10.5.1.9"
	foreign.src, foreign.dst = "10.5.2.9", "10.5.3.9"
	wanted := tcpTrain(1, 100, 100)[0]
	device := &fakeQueue{refuse: func([]byte) unix.Errno { return unix.EIO }}
	for reason, x := range map[metrics.Drop]struct {
		a     arrival
		queue *fakeQueue
	}{
		metrics.DropMalformed:          {arrival{from: fromB, b: wanted[:30]}, &fakeQueue{}},
		metrics.DropUnknownPeer:        {arrival{from: "203.0.113.9", b: wanted}, &fakeQueue{}},
		metrics.DropSpoofedSource:      {arrival{from: fromB, b: spoofed.bytes()}, &fakeQueue{}},
		metrics.DropForeignDestination: {arrival{from: fromB, b: foreign.bytes()}, &fakeQueue{}},
		metrics.DropCongestion:         {arrival{from: fromB, b: wanted, tos: 3}, &fakeQueue{}},
		metrics.DropTruncated:          {arrival{from: fromB, b: wanted, flags: unix.MSG_TRUNC}, &fakeQueue{}},
		metrics.DropDeviceError:        {arrival{from: fromB, b: wanted}, device},
	} {
		s := newShard(x.queue, discard{})
		r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
		c := capture(t, s, CaptureOptions{Drops: []metrics.Drop{reason}})
		forwardRX(t, r, x.a)
		got := drain(t, c)
		if len(got) != 1 || got[0].Drop != reason || got[0].Out || got[0].Outer.String() != x.a.from || !bytes.Equal(got[0].bytes, x.a.b) {
			t.Errorf("received, %s: captured %+v", reason, got)
		}
	}
}

func TestCaptureSelectsByPeerPodAndReason(t *testing.T) {
	reads := [][]byte{}
	for _, dst := range []string{"10.5.2.1", "10.5.2.2", "10.5.3.1", "203.0.113.9"} {
		s := toB(10)
		s.dst = dst
		reads = append(reads, read(tun.Header{}, s.bytes()))
	}
	for name, tt := range map[string]struct {
		o    CaptureOptions
		want []string // destinations
	}{
		"all":               {CaptureOptions{}, []string{"10.5.2.1", "10.5.2.2", "10.5.3.1", "203.0.113.9"}},
		"a peer":            {CaptureOptions{Peers: []netip.Addr{peerB.addr()}}, []string{"10.5.2.1", "10.5.2.2"}},
		"a pod":             {CaptureOptions{Pods: []netip.Prefix{netip.MustParsePrefix("10.5.2.2/32")}}, []string{"10.5.2.2"}},
		"a source":          {CaptureOptions{Pods: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}}, []string{"10.5.2.1", "10.5.2.2", "10.5.3.1", "203.0.113.9"}},
		"a reason":          {CaptureOptions{Drops: []metrics.Drop{metrics.DropNoRoute}}, []string{"203.0.113.9"}},
		"a peer and reason": {CaptureOptions{Peers: []netip.Addr{peerB.addr()}, Drops: []metrics.Drop{metrics.DropNoRoute}}, nil},
	} {
		s := newShard(&fakeQueue{reads: reads}, discard{})
		c := capture(t, s, tt.o)
		forwardTX(t, newTX(s, make([]byte, normalFootprint.txArena)))
		var got []string
		for _, p := range drain(t, c) {
			if _, dst := innerAddrs(p.bytes); p.Out {
				got = append(got, dst.String())
			}
		}
		if slices.Sort(got); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// The ICMP errors that pods are sent explain what they do next.
func TestCaptureSeesTheErrorsThatTheEngineWrites(t *testing.T) {
	stray := toB(40)
	stray.dst = "203.0.113.9"
	s := newShard(&fakeQueue{reads: [][]byte{read(tun.Header{}, stray.bytes())}}, discard{})
	c := capture(t, s, CaptureOptions{})
	forwardTX(t, newTX(s, make([]byte, normalFootprint.txArena)))
	got := drain(t, c)
	var h encap.Header
	if len(got) != 2 || got[1].Out || got[1].Outer.IsValid() || !encap.Parse(got[1].bytes, &h) || h.Proto != unix.IPPROTO_ICMP {
		t.Errorf("captured %+v", got)
	}
}

func TestCaptureKeepsTheBeginningOfLargePackets(t *testing.T) {
	k := &kernel{t: t, segments: maxSegmentsOld}
	s := newShard(&fakeQueue{reads: [][]byte{superPacket(toB(60000), 1400)}}, k)
	c := capture(t, s, CaptureOptions{Snaplen: 96})
	forwardTX(t, newTX(s, make([]byte, normalFootprint.txArena)))
	for i, p := range drain(t, c) {
		if b := k.wire[i].b; len(p.bytes) != 96 || p.Length != len(b) || string(p.bytes) != b[:96] {
			t.Errorf("packet %d: %d of %d bytes, on the wire %d", i, len(p.bytes), p.Length, len(b))
		}
	}
}

// A reader that does not keep up loses packets, and learns how many and where.
func TestCaptureCountsWhatDoesNotFit(t *testing.T) {
	const rounds = 40 // of 60,000 bytes, which is more than a ring has
	var reads [][]byte
	for range rounds {
		reads = append(reads, superPacket(toB(60000), 1400))
	}
	k := &kernel{t: t, segments: maxSegmentsOld}
	s := newShard(&fakeQueue{reads: reads}, k)
	s.tap.directions = 1 << 10
	c := capture(t, s, CaptureOptions{})
	x := newTX(s, make([]byte, normalFootprint.txArena))
	forwardTX(t, x)
	kept := drain(t, c)
	lost := int(c.Lost())
	if len(kept)+lost != len(k.wire) || lost == 0 || len(kept) < 100 {
		t.Fatalf("%d kept and %d lost of %d", len(kept), lost, len(k.wire))
	}
	x.shard.queue.(*fakeQueue).next = rounds - 1
	forwardTX(t, x)
	if next := drain(t, c); len(next) == 0 || next[0].Lost != lost || next[1].Lost != 0 {
		t.Errorf("after %d lost ones: %+v", lost, next[:min(2, len(next))])
	}
}

// Rings of many directions do not use more memory than a capture may.
func TestCaptureIsBoundedInMemory(t *testing.T) {
	var taps Taps
	c, err := taps.Start(CaptureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for range 1000 {
		if r := c.ring(1000); r != nil {
			total += len(r.buf)
		}
	}
	if total == 0 || total > captureMemory {
		t.Errorf("%d bytes", total)
	}
	none := tap{taps: &taps, directions: 1000}
	none.use()
	none.record(true, forwarded, netip.Addr{}, toB(10).bytes())
	if c.Lost() != 1 {
		t.Errorf("%d packets lost of a direction that has no ring, want 1", c.Lost())
	}
}

func TestThereIsOneCaptureAtATime(t *testing.T) {
	k := &kernel{t: t, segments: maxSegmentsOld}
	q := &fakeQueue{reads: [][]byte{read(tun.Header{}, toB(10).bytes())}}
	s := newShard(q, k)
	x := newTX(s, make([]byte, normalFootprint.txArena))
	first := capture(t, s, CaptureOptions{})
	if _, err := s.tap.taps.Start(CaptureOptions{}); !errors.Is(err, ErrCapturing) {
		t.Errorf("a second one: %v", err)
	}
	forwardTX(t, x)
	first.Stop()
	q.next = 0
	forwardTX(t, x)
	if got := drain(t, first); len(got) != 1 {
		t.Errorf("%d packets captured, want the one before the end", len(got))
	}
	second := capture(t, s, CaptureOptions{})
	first.Stop() // does not end the second
	q.next = 0
	forwardTX(t, x)
	if got := drain(t, second); len(got) != 1 {
		t.Errorf("the second captured %d packets, want 1", len(got))
	}
}

// TestCaptureReadsWhileDirectionsWrite is for the race detector too.
func TestCaptureReadsWhileDirectionsWrite(t *testing.T) {
	var taps Taps
	c, err := taps.Start(CaptureOptions{})
	if err != nil {
		t.Fatal(err)
	}
	const each, directions = 20000, 3
	done := make(chan bool, directions)
	for range directions {
		go func() {
			x := tap{taps: &taps, directions: 1 << 10}
			x.use()
			for i := range each {
				pkt := pattern(20 + i%1400)
				x.record(true, forwarded, netip.Addr{}, pkt)
			}
			done <- true
		}()
	}
	got, running := 0, directions
	for running > 0 {
		select {
		case <-done:
			running--
		default:
		}
		for _, p := range drain(t, c) {
			got += 1
			if !bytes.Equal(p.bytes, pattern(p.Length)) {
				t.Fatalf("a packet of %d bytes was captured as %d bytes with other content", p.Length, len(p.bytes))
			}
		}
	}
	if got += len(drain(t, c)); got+int(c.Lost()) != each*directions || got == 0 {
		t.Errorf("%d packets and %d lost, want %d", got, c.Lost(), each*directions)
	}
}

func TestCapturingDoesNotAllocate(t *testing.T) {
	q := &fakeQueue{reads: traffic(), loop: true}
	x := newTX(newShard(q, discard{}), make([]byte, normalFootprint.txArena))
	c := capture(t, x.shard, CaptureOptions{Pods: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}, Peers: []netip.Addr{peerB.addr(), peerC.addr()}})
	r := newRX(newShard(&fakeQueue{forget: true}, discard{}), make([]byte, normalFootprint.rxSlots*slotSize))
	r.tap = x.shard.tap
	place(t, r, 0, train(tcpTrain(40, 1400, 700)))
	noAllocs(t, func() {
		forwardTX(t, x)
		r.tap.use()
		r.check.use(nodes)
		if err := errors.Join(r.datagram(0), r.write()); err != nil {
			t.Fatal(err)
		}
		for _, ring := range c.rings { // as Drain does, without its list of rings
			ring.end = ring.head.Load()
			for {
				h, ok := ring.peek()
				if !ok {
					break
				}
				c.data = ring.take(&h, c.data)
			}
		}
	})
}
