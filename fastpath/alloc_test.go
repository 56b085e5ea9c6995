package fastpath

import (
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// noAllocs fails if f allocates; f handles many packets.
func noAllocs(t *testing.T, f func()) {
	t.Helper()
	if n := testing.AllocsPerRun(50, f); n != 0 {
		t.Errorf("%v allocations a batch", n)
	}
}

// traffic is reads of all kinds for a TX direction.
func traffic() (reads [][]byte) {
	reads = append(reads, superPacket(toB(60000), 1400), superPacket(segment{src: "10.5.1.9", dst: "10.5.3.9", payload: pattern(30000)}, 1200))
	for i := range 40 {
		s := toB(100)
		s.dst = netip.AddrFrom4([4]byte{10, 5, byte(2 + i%2), byte(i)}).String()
		reads = append(reads, read(tun.Header{}, s.bytes()))
	}
	return reads
}

func TestTXDoesNotAllocate(t *testing.T) {
	for _, segments := range []int{1, maxSegmentsOld} {
		q := &fakeQueue{reads: traffic(), loop: true}
		s := newShard(q, discard{})
		s.segments = segments
		x := newTX(s, make([]byte, normalFootprint.txArena))
		noAllocs(t, func() {
			for {
				x.resolver.use(nodes)
				_, _, errno := x.batch(false)
				x.sends.flush()
				x.resolver.flush(s.counters)
				if errno == unix.EAGAIN {
					break
				}
			}
		})
		if n := dropped(x.c); n != 0 {
			t.Errorf("%v", drops(x.c))
		}
	}
}

func TestRXDoesNotAllocate(t *testing.T) {
	for _, merge := range []bool{true, false} {
		s := newShard(&fakeQueue{forget: true}, discard{})
		s.mergeTCP, s.mergeUDP = merge, merge
		r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
		as := []arrival{
			train(tcpTrain(40, 1400, 700)), train(udpTrain(40, 1200, 1200)),
			{from: fromB, b: udpTrain(1, 10, 10)[0]},
			{from: "198.51.100.1", b: udpTrain(1, 10, 10)[0]}, // dropped
			{from: fromB, b: segment{src: "10.5.2.9", dst: "10.5.1.9", flags: tcpACK, payload: pattern(20000)}.bytes()},
		}
		for i, a := range as {
			place(t, r, i, a)
		}
		again := arriveAgain(r)
		noAllocs(t, func() {
			again()
			r.check.use(nodes)
			for i := range as {
				if err := r.datagram(i); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.write(); err != nil {
				t.Fatal(err)
			}
			r.check.resolver.flush(s.counters)
		})
		if d := drops(r.c); len(d) != 1 || d[metrics.DropUnknownPeer] == 0 {
			t.Errorf("merging %v: dropped %v", merge, d)
		}
	}
}

func TestResolverHitDoesNotAllocate(t *testing.T) {
	r := newCachingResolver(nodes)
	noAllocs(t, func() {
		for i := range 400 { // each in the LRU, then in the memo
			if r.peer(addr4(i/2)) == nil {
				t.Fatal("no peer")
			}
		}
	})
}

// TestTableLookupDoesNotAllocate is for 64-bit machines: on others the compiler
// does not inline netip.Addr.AsSlice, which bart uses.
func TestTableLookupDoesNotAllocate(t *testing.T) {
	most := 0.0
	if strconv.IntSize == 32 {
		most = 1
	}
	r := newTestResolver(nodes)
	a := netip.MustParseAddr("10.99.0.1")
	if n := testing.AllocsPerRun(50, func() { r.peer(a) }); n > most {
		t.Errorf("%v allocations a look-up", n)
	}
}

func TestSendAndReceiveDoNotAllocate(t *testing.T) {
	to, from := openUDP(t, "127.0.0.1"), openUDP(t, "127.0.0.1")
	msgs := slices.Repeat(messages(NewPeer(nil, to.addr))[:5], 8)
	s, r := newMmsgSender(newOutlets(from.fd, from.fd, false)), newSockRX(to.fd)
	noAllocs(t, func() {
		if n, errno := s.send(msgs); n == 0 {
			t.Fatal(errno)
		}
		for {
			if _, errno := r.receive(len(r.msgs)); errno != 0 {
				break
			}
		}
	})
}
