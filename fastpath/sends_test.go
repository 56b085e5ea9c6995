package fastpath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// harness is a sends between its test and a scripted kernel. The path to
// each peer has an MTU of path bytes.
type harness struct {
	*sends
	kernel *kernel
	queue  *fakeQueue
	c      *metrics.Direction
	want   []datagram // what was added, in order
	memory []byte     // free, for packets

	path    int // MTU
	waits   int
	stopped bool
}

func newHarness(t testing.TB, segments int, ipv6 bool) *harness {
	h := &harness{kernel: &kernel{t: t, segments: segments}, queue: new(fakeQueue), c: new(metrics.Direction)}
	x := &exceptions{
		shard: newShard(h.queue, h.kernel),
		wait: func(bool) (bool, error) {
			h.waits++
			return !h.stopped, nil
		},
		pathMTU: func(*Peer) (int, error) { return h.path, nil },
	}
	h.sends = newSends(h.kernel, x, segments, ipv6, h.c)
	return h
}

// refusal is the error for which UDP GSO was turned off, 0 if it was not.
func (h *harness) refusal() unix.Errno { return unix.Errno(h.exceptions.shard.gsoRefused.Load()) }

// place returns memory for a packet of size bytes, gap bytes behind that for the one before.
func (h *harness) place(size, gap int) []byte {
	if len(h.memory) < gap+size {
		h.memory, gap = make([]byte, 1<<20), 0
	}
	pkt := h.memory[gap : gap+size : gap+size]
	h.memory = h.memory[gap+size:]
	return pkt
}

// put adds a packet of size bytes, which lies gap bytes behind the one before. Its first
// bytes are unique.
func (h *harness) put(peer *Peer, tos uint8, size, gap int) {
	pkt := h.place(size, gap)
	copy(pkt, pattern(size))
	var serial [4]byte
	binary.BigEndian.PutUint32(serial[:], uint32(len(h.want)))
	copy(pkt, serial[:])
	h.add(peer, way{tos: tos}, pkt)
	h.want = append(h.want, datagram{peer, tos, string(pkt)})
}

// shape lists the packets in each message of the batch.
func (h *harness) shape() (n []int) {
	for i := range h.msgs {
		n = append(n, h.msgs[i].packets)
	}
	return n
}

// check flushes and compares what the kernel has put on the wire with what was
// added, but for the packets with the serial numbers in lost.
func (h *harness) check(t *testing.T, lost ...int) {
	t.Helper()
	h.flush()
	var want []datagram
	for i, d := range h.want {
		if !slices.Contains(lost, i) {
			want = append(want, d)
		}
	}
	if !slices.Equal(h.kernel.wire, want) {
		t.Errorf("%d packets on the wire, want %d\ngot  %v\nwant %v",
			len(h.kernel.wire), len(want), serials(h.kernel.wire), serials(want))
	}
	bytes := 0
	for _, d := range want {
		bytes += len(d.b)
	}
	if p, b := h.c.Packets.Load(), h.c.Bytes.Load(); p != uint64(len(want)) || b != uint64(bytes) {
		t.Errorf("counted %d packets, %d bytes; sent %d, %d", p, b, len(want), bytes)
	}
	if n := dropped(h.c); n != uint64(len(lost)) {
		t.Errorf("counted %v as dropped, want %d", drops(h.c), len(lost))
	}
	if len(h.msgs) != 0 || len(h.iov) != 0 {
		t.Errorf("the batch is not empty: %d messages, %d vectors", len(h.msgs), len(h.iov))
	}
}

func serials(ds []datagram) (s []uint32) {
	for _, d := range ds {
		s = append(s, binary.BigEndian.Uint32([]byte(d.b)))
	}
	return s
}

func TestConsecutivePacketsBecomeTrains(t *testing.T) {
	type p struct {
		peer *Peer
		tos  uint8
		size int
	}
	for _, tt := range []struct {
		name     string
		segments int
		packets  []p
		want     []int
	}{
		{"one", 64, []p{{peerB, 0, 100}}, []int{1}},
		{"equal", 64, []p{{peerB, 0, 100}, {peerB, 0, 100}, {peerB, 0, 100}}, []int{3}},
		{"shorter ends it", 64, []p{{peerB, 0, 100}, {peerB, 0, 99}, {peerB, 0, 99}}, []int{2, 1}},
		{"shorter, then as before", 64, []p{{peerB, 0, 100}, {peerB, 0, 99}, {peerB, 0, 100}}, []int{2, 1}},
		{"longer begins another", 64, []p{{peerB, 0, 100}, {peerB, 0, 101}, {peerB, 0, 101}}, []int{1, 2}},
		{"peers", 64, []p{{peerB, 0, 100}, {peerC, 0, 100}, {peerC, 0, 100}, {peerB, 0, 100}}, []int{1, 2, 1}},
		{"ECN", 64, []p{{peerB, 0, 100}, {peerB, 2, 100}, {peerB, 2, 100}, {peerB, 3, 100}}, []int{1, 2, 1}},
		{"without GSO", 1, []p{{peerB, 0, 100}, {peerB, 0, 100}}, []int{1, 1}},
		{"limit of segments", 2, []p{{peerB, 0, 100}, {peerB, 0, 100}, {peerB, 0, 100}}, []int{2, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, tt.segments, false)
			for _, p := range tt.packets {
				h.put(p.peer, p.tos, p.size, 0)
			}
			if got := h.shape(); !slices.Equal(got, tt.want) {
				t.Errorf("trains of %v packets, want %v", got, tt.want)
			}
			h.check(t)
		})
	}
}

// The kernel copies one piece of 60 KB much faster than many of a packet each.
func TestPacketsThatLieTogetherTakeOneVector(t *testing.T) {
	for gap, want := range []int{1, 20} {
		h := newHarness(t, 64, false)
		for range 20 {
			h.put(peerB, 0, 1000, gap)
		}
		if got := h.shape(); !slices.Equal(got, []int{20}) || len(h.iov) != want {
			t.Errorf("%d bytes apart: trains of %v packets in %d vectors, want 20 in %d", gap, got, len(h.iov), want)
		}
		h.check(t)
	}
}

func TestTrainsStayBelowTheLimitsOfTheKernel(t *testing.T) {
	for _, tt := range []struct {
		name     string
		segments int
		ipv6     bool
		size, n  int
		want     []int
	}{
		{"64 segments", 64, false, 100, 130, []int{64, 64, 2}},
		{"128 segments", 128, false, 100, 130, []int{128, 2}},
		{"65,507 bytes", 64, false, 5039, 14, []int{13, 1}}, // 13 · 5,039 = 65,507
		{"one byte more", 64, false, 5040, 14, []int{12, 2}},
		{"65,527 bytes over IPv6", 64, true, 5957, 12, []int{11, 1}}, // 11 · 5,957 = 65,527
		{"one byte more over IPv6", 64, true, 5958, 12, []int{10, 2}},
		{"half of 65,507 twice", 64, false, 32753, 3, []int{2, 1}},
		{"more than half", 64, false, 32754, 3, []int{1, 1, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, tt.segments, tt.ipv6)
			peer := peerB
			if tt.ipv6 {
				peer = peer6
			}
			for range tt.n {
				h.put(peer, 0, tt.size, 0)
			}
			if got := h.shape(); !slices.Equal(got, tt.want) {
				t.Errorf("trains of %v packets, want %v", got, tt.want)
			}
			h.check(t)
		})
	}
	t.Run("shorter last fills 65,507 bytes", func(t *testing.T) {
		for last, want := range map[int][]int{507: {66}, 508: {65, 1}} {
			h := newHarness(t, 128, false)
			for range 65 {
				h.put(peerB, 0, 1000, 0)
			}
			h.put(peerB, 0, last, 0)
			if got := h.shape(); !slices.Equal(got, want) {
				t.Errorf("last of %d bytes: trains of %v packets, want %v", last, got, want)
			}
			h.check(t)
		}
	})
}

func TestFullBatchIsSentAndPacketsGoOn(t *testing.T) {
	for _, tt := range []struct {
		name      string
		n         int
		size, gap int
		peers     []*Peer
	}{
		{"messages", 3*maxMessages + 5, 100, 0, []*Peer{peerB, peerC}},
		{"vectors", 2*maxVectors + 5, 60, 1, []*Peer{peerB}},
		{"messages of one vector", 64*maxMessages + 5, 40, 0, []*Peer{peerB}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, 64, false)
			for i := range tt.n {
				h.put(tt.peers[i%len(tt.peers)], 0, tt.size, tt.gap)
			}
			h.check(t)
		})
	}
}

// outcomes answers the n-th call with the n-th of what, then accepts all.
func outcomes(what ...unix.Errno) func([]message) (int, unix.Errno) {
	return func(msgs []message) (int, unix.Errno) {
		if len(what) == 0 {
			return len(msgs), 0
		}
		errno := what[0]
		what = what[1:]
		if errno == 0 {
			return 1, 0
		}
		return 0, errno
	}
}

// trains puts a single packet, three trains and a single packet.
func (h *harness) trains() {
	h.put(peerC, 0, 90, 0)
	for i := range 4 {
		h.put(peerB, 0, 100, i/2) // 1–4
	}
	for range 3 {
		h.put(peerB, 2, 100, 0) // 5–7
	}
	h.put(peerB, 2, 50, 0) // 8
	for range 2 {
		h.put(peerC, 0, 100, 0) // 9, 10
	}
	h.put(peerB, 0, 60, 0) // 11
}

func TestTransientErrorsLoseNothing(t *testing.T) {
	for _, tt := range []struct {
		name   string
		errnos []unix.Errno
		waits  int
	}{
		{"taken one at a time", []unix.Errno{0, 0, 0, 0, 0}, 0},
		{"EINTR", []unix.Errno{unix.EINTR, unix.EINTR, 0, unix.EINTR}, 0},
		{"EAGAIN", []unix.Errno{unix.EAGAIN, 0, unix.EAGAIN, unix.EAGAIN}, 3},
		{"ENOBUFS three times", []unix.Errno{unix.ENOBUFS, unix.ENOMEM, unix.ENOBUFS, 0, unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, 64, false)
			h.kernel.script = outcomes(tt.errnos...)
			h.trains()
			h.check(t)
			if h.waits != tt.waits {
				t.Errorf("waited %d times, want %d", h.waits, tt.waits)
			}
			if h.refusal() != 0 || h.segments != 64 {
				t.Errorf("GSO was turned off: %v", h.refusal())
			}
		})
	}
}

func TestLastingENOBUFSDropsOneMessageAndTheRestGoesOn(t *testing.T) {
	h := newHarness(t, 64, false)
	h.kernel.script = outcomes(0, unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS)
	h.trains()
	h.check(t, 1, 2, 3, 4)
	if n := h.c.Drops[metrics.DropNoBuffer].Load(); n != 4 {
		t.Errorf("no_buffer: %d packets", n)
	}
}

func TestUnreachablePeerDoesNotTakeTheBatchAlong(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EPERM, unix.EACCES, unix.ENODEV} {
		h := newHarness(t, 64, false)
		h.kernel.script = func(msgs []message) (int, unix.Errno) {
			for i := range msgs {
				if msgs[i].peer == peerB {
					return i, errno
				}
			}
			return len(msgs), 0
		}
		h.trains()
		h.check(t, 1, 2, 3, 4, 5, 6, 7, 8, 11)
		if n := h.c.Drops[metrics.DropSendError].Load(); n != 9 {
			t.Errorf("%v: send_error: %d packets", errno, n)
		}
		if h.refusal() != 0 {
			t.Errorf("%v turned GSO off", errno)
		}
	}
}

func TestSenderThatMakesNoProgressIsGivenUp(t *testing.T) {
	h := newHarness(t, 64, false)
	h.kernel.script = func([]message) (int, unix.Errno) { return 0, 0 }
	h.trains()
	h.check(t, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
}

// refuseTrains is a kernel that cannot segment.
func refuseTrains(errno unix.Errno) func([]message) (int, unix.Errno) {
	return func(msgs []message) (int, unix.Errno) {
		for i := range msgs {
			if msgs[i].packets > 1 {
				return i, errno
			}
		}
		return len(msgs), 0
	}
}

func TestGSORefusedAtRunTimeSendsTheSamePacketsSingly(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EIO, unix.EINVAL} {
		t.Run(errno.Error(), func(t *testing.T) {
			h := newHarness(t, 64, false)
			h.kernel.script = refuseTrains(errno)
			h.trains()
			h.check(t)
			if n := h.exceptions.shard.counters.GSOFallbacks.Load(); h.refusal() != errno || n != 1 {
				t.Errorf("GSO refused %d times, at last for %v; want %v once", n, h.refusal(), errno)
			}
			calls := h.kernel.calls
			h.trains() // trains are no longer made
			if got := h.shape(); !slices.Equal(got, slices.Repeat([]int{1}, 12)) {
				t.Errorf("after the refusal: trains of %v packets", got)
			}
			h.check(t)
			if n := h.kernel.calls - calls; n != 1 {
				t.Errorf("%d calls for a batch of single packets", n)
			}
		})
	}
}

func TestTransientErrorsWhileSendingSinglyLoseNothing(t *testing.T) {
	h := newHarness(t, 64, false)
	singles := outcomes(unix.EINTR, unix.EAGAIN, unix.ENOBUFS, 0, unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS)
	h.kernel.script = func(msgs []message) (int, unix.Errno) {
		if n, errno := refuseTrains(unix.EIO)(msgs); n == 0 {
			return n, errno
		}
		return singles(msgs[:1])
	}
	h.trains()
	h.check(t)
	if h.waits != 1 || h.refusal() != unix.EIO {
		t.Errorf("%d waits, refusal %v", h.waits, h.refusal())
	}
}

// fits is a kernel whose path carries packets of up to mtu bytes.
func fits(mtu int, train unix.Errno) func([]message) (int, unix.Errno) {
	return func(msgs []message) (int, unix.Errno) {
		for i := range msgs {
			if m := &msgs[i]; m.segment > mtu && !m.fragment {
				if m.packets > 1 {
					return i, train
				}
				return i, unix.EMSGSIZE
			}
		}
		return len(msgs), 0
	}
}

func TestPacketsTooBigForThePathAreLostAlone(t *testing.T) {
	// Kernels say EMSGSIZE or EINVAL of a train whose segments are too big.
	for _, train := range []unix.Errno{unix.EMSGSIZE, unix.EINVAL} {
		t.Run(train.Error(), func(t *testing.T) {
			h := newHarness(t, 64, false)
			h.kernel.script = fits(90, train)
			h.trains()
			h.check(t, 1, 2, 3, 4, 5, 6, 7, 9, 10)
			if n := h.c.Drops[metrics.DropTooBig].Load(); n != 9 {
				t.Errorf("too_big: %d packets", n)
			}
			if h.refusal() != 0 || h.segments != 64 {
				t.Errorf("GSO was turned off: %v", h.refusal())
			}
		})
	}
}

func TestTrainThatIsTooBigOnlyForAMomentLeavesGSOOn(t *testing.T) {
	h := newHarness(t, 64, false)
	h.kernel.script = outcomes(0, unix.EMSGSIZE) // the path has widened meanwhile
	h.trains()
	h.check(t)
	if h.refusal() != 0 || h.segments != 64 {
		t.Errorf("GSO was turned off: %v", h.refusal())
	}
}

// tooBigs are the packets whose senders were sent an ICMP error, by the last byte
// of their destination, and the MTU in the errors.
func (h *harness) tooBigs(t *testing.T) (to []byte, mtu uint16) {
	t.Helper()
	for _, w := range h.queue.writes {
		w = w[tun.HeaderLen:]
		if w[9] != unix.IPPROTO_ICMP || w[20] != 3 || w[21] != 4 {
			t.Errorf("written to the device: % x, want ICMP fragmentation needed", w[:28])
			continue
		}
		mtu = binary.BigEndian.Uint16(w[26:])
		to = append(to, w[28:][19])
	}
	return to, mtu
}

// addPacket adds an IP packet.
func (h *harness) addPacket(s segment) {
	pkt := h.place(len(s.bytes()), 0)
	copy(pkt, s.bytes())
	h.add(peerB, way{}, pkt)
}

func TestSenderLearnsThePathMTUOfEachPacketThatMayNotBeFragmented(t *testing.T) {
	for _, train := range []unix.Errno{unix.EMSGSIZE, unix.EINVAL} {
		h := newHarness(t, 64, false)
		h.path, h.kernel.script = 1000, fits(1000-28, train)
		for i := range 3 {
			h.addPacket(segment{src: "10.5.1.9", dst: fmt.Sprintf("10.5.2.%d", i+1), df: true, flags: tcpACK, payload: pattern(1200)})
		}
		h.addPacket(segment{src: "10.5.1.9", dst: "10.5.2.9", df: true, flags: tcpACK, payload: pattern(500)})
		h.flush()
		if to, mtu := h.tooBigs(t); !bytes.Equal(to, []byte{1, 2, 3}) || mtu != 1000-28 {
			t.Errorf("%v: errors about packets to %v with MTU %d", train, to, mtu)
		}
		if n, p := h.c.Drops[metrics.DropTooBig].Load(), h.c.Packets.Load(); n != 3 || p != 1 {
			t.Errorf("%v: %d too big, %d sent", train, n, p)
		}
	}
}

// TestPacketThatIsNotSentAgainGoesInFragmentsBesideTheError: only TCP sends again
// what was too big.
func TestPacketThatIsNotSentAgainGoesInFragmentsBesideTheError(t *testing.T) {
	h := newHarness(t, 64, false)
	h.path, h.kernel.script = 1000, fits(1000-28, unix.EMSGSIZE)
	h.addPacket(segment{src: "10.5.1.9", dst: "10.5.2.7", df: true, payload: pattern(1200)})
	h.flush()
	if n, p := dropped(h.c), h.c.Packets.Load(); n != 0 || p != 1 || len(h.kernel.wire) != 1 {
		t.Errorf("%d dropped, %d sent, %d on the wire", n, p, len(h.kernel.wire))
	}
	if to, mtu := h.tooBigs(t); !bytes.Equal(to, []byte{7}) || mtu != 1000-28 {
		t.Errorf("errors about packets to %v with MTU %d", to, mtu)
	}
}

func TestPacketThatMayBeFragmentedGoesInFragments(t *testing.T) {
	h := newHarness(t, 64, false)
	h.path, h.kernel.script = 1000, fits(1000-28, unix.EMSGSIZE)
	for i := range 3 {
		h.addPacket(segment{src: "10.5.1.9", dst: fmt.Sprintf("10.5.2.%d", i+1), flags: tcpACK, payload: pattern(1200)})
	}
	h.flush()
	if n, p := dropped(h.c), h.c.Packets.Load(); n != 0 || p != 3 || len(h.kernel.wire) != 3 {
		t.Errorf("%d dropped, %d sent, %d on the wire", n, p, len(h.kernel.wire))
	}
	if to, _ := h.tooBigs(t); to != nil {
		t.Errorf("errors about packets to %v", to)
	}
}

// TestTrainThatGoesInFragmentsLeavesGSOOn: kernels refuse a GSO send whose segments
// do not fit the path even where the packets may be fragmented.
func TestTrainThatGoesInFragmentsLeavesGSOOn(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EMSGSIZE, unix.EINVAL} {
		h := newHarness(t, 64, false)
		h.kernel.script = func(msgs []message) (int, unix.Errno) {
			for i := range msgs {
				if msgs[i].packets > 1 {
					return i, errno
				}
			}
			return len(msgs), 0
		}
		for range 3 {
			h.add(peerB, way{fragment: true}, h.place(1300, 0))
		}
		h.flush()
		if n := h.c.Packets.Load(); n != 3 || dropped(h.c) != 0 || h.refusal() != 0 || h.segments != 64 {
			t.Errorf("%v: %d sent, %v, GSO refused: %v", errno, n, drops(h.c), h.refusal())
		}
	}
}

func TestPacketsThatMayBeFragmentedAreNotInATrainWithOthers(t *testing.T) {
	h := newHarness(t, 64, false)
	for i := range 6 {
		h.add(peerB, way{fragment: i/2 == 1}, h.place(100, 0))
	}
	if got := h.shape(); !slices.Equal(got, []int{2, 2, 2}) {
		t.Errorf("trains of %v packets", got)
	}
}

func TestStoppingWithAFullSocketLeavesTheBatchEmpty(t *testing.T) {
	for _, segments := range []int{1, 64} {
		h := newHarness(t, segments, false)
		h.stopped = true
		h.kernel.script = func([]message) (int, unix.Errno) { return 0, unix.EAGAIN }
		// More than fits a batch: what follows must not run past its end.
		for range 3 * maxVectors {
			h.put(peerB, 0, 100, 1)
		}
		h.flush()
		if len(h.kernel.wire) != 0 || len(h.msgs) != 0 || len(h.iov) != 0 {
			t.Errorf("segments %d: %d messages are left", segments, len(h.msgs))
		}
	}
}

func TestPeersCountWhatTheyWereSent(t *testing.T) {
	p := NewPeer(peerB.Subnets, peerB.Endpoint)
	h := newHarness(t, 64, false)
	for range 5 {
		h.put(p, 0, 100, 0)
	}
	h.put(p, 0, 50, 0)
	h.check(t)
	if n, b := p.Traffic.TXPackets.Load(), p.Traffic.TXBytes.Load(); n != 6 || b != 550 {
		t.Errorf("%d packets, %d bytes", n, b)
	}
	if n := h.c.Datagrams.Load(); n != 1 {
		t.Errorf("%d messages", n)
	}
}

// TestEveryPacketIsSentOnceInOrderOrCounted: whatever the kernel answers, the
// packets of a peer leave in the order they came, none twice, and those that do
// not leave are counted.
func TestEveryPacketIsSentOnceInOrderOrCounted(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			segments := []int{1, 2, 64, 128}[rnd.IntN(4)]
			h := newHarness(t, segments, false)
			h.kernel.script = chaos(rnd)
			for range 1 + rnd.IntN(60) {
				peer := []*Peer{peerB, peerC}[rnd.IntN(8)/7]
				size := []int{60, 100, 1400, 1400, 1400, 9000, 33000, 65507}[rnd.IntN(8)]
				if rnd.IntN(8) == 0 {
					size -= rnd.IntN(20)
				}
				for range 1 + rnd.IntN(min(150, 1+60000/size)) {
					h.put(peer, []uint8{0, 0, 0, 2, 3}[rnd.IntN(5)], size, rnd.IntN(2))
				}
				if rnd.IntN(20) == 0 {
					h.flush()
				}
			}
			h.flush()
			if len(h.kernel.wire)+int(dropped(h.c)) != len(h.want) {
				t.Errorf("%d added, %d sent, %d counted as dropped", len(h.want), len(h.kernel.wire), dropped(h.c))
			}
			// Serial numbers rise: in order, and none twice.
			last := -1
			for _, d := range h.kernel.wire {
				n := int(binary.BigEndian.Uint32([]byte(d.b)))
				if n <= last {
					t.Fatalf("packet %d was sent after %d", n, last)
				}
				last = n
				if want := h.want[n]; d != want {
					t.Fatalf("packet %d: sent %d bytes, TOS %d; want %d, %d; equal: %t",
						n, len(d.b), d.tos, len(want.b), want.tos, bytes.Equal([]byte(d.b), []byte(want.b)))
				}
			}
			if h.c.Packets.Load() != uint64(len(h.kernel.wire)) {
				t.Errorf("counted %d packets, sent %d", h.c.Packets.Load(), len(h.kernel.wire))
			}
		})
	}
}

// chaos is a kernel that answers at random, within what kernels do: what it
// refuses for good, it refuses always.
func chaos(rnd *rand.Rand) func([]message) (int, unix.Errno) {
	noGSO := rnd.IntN(3) == 0
	mtu := []int{65535, 65535, 1400, 99}[rnd.IntN(4)]
	unreachable := []*Peer{nil, nil, peerC}[rnd.IntN(3)]
	trouble := rnd.IntN(4)
	return func(msgs []message) (int, unix.Errno) {
		if rnd.IntN(8) < trouble {
			return 0, []unix.Errno{unix.EINTR, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM}[rnd.IntN(4)]
		}
		for i := range msgs {
			switch m := &msgs[i]; {
			case m.peer == unreachable:
				return i, unix.ENETUNREACH
			case m.segment > mtu:
				return i, unix.EMSGSIZE
			case noGSO && m.packets > 1:
				return i, unix.EIO
			case rnd.IntN(16) < trouble && i > 0:
				return i, 0 // partial
			}
		}
		return len(msgs), 0
	}
}

// A train that has room for more packets waits for the next batch, whatever becomes of
// those before it.
func TestTrainsGrowFromBatchToBatch(t *testing.T) {
	for _, tt := range []struct {
		name    string
		batches [][]int // sizes of the packets
		want    [][]int // packets in each message that is sent in a batch
	}{
		{"one train", [][]int{{100, 100}, {100}, {100, 100}}, [][]int{{}, {}, {5}}},
		{"a train and more", [][]int{{50, 100, 100}, {100, 200}}, [][]int{{1}, {3, 1}}},
		{"one packet", [][]int{{100}, {100, 100}}, [][]int{{1}, {2}}},
		{"a shorter packet", [][]int{{100, 99}, {99}}, [][]int{{2}, {1}}},
		{"in the next batch", [][]int{{100, 100}, {99, 99}}, [][]int{{}, {3, 1}}},
		{"a longer one there", [][]int{{100, 100}, {101, 101, 101}}, [][]int{{}, {2, 3}}},
		{"nothing more", [][]int{{100, 100}, {}}, [][]int{{}, {2}}},
		{"a full train", [][]int{repeat(100, 64), {100}}, [][]int{{64}, {1}}},
		{"a train that gets full", [][]int{repeat(100, 60), repeat(100, 6)}, [][]int{{}, {64, 2}}},
		{"65,507 bytes", [][]int{repeat(5039, 13), {5039}}, [][]int{{13}, {1}}},
		{"almost", [][]int{repeat(5039, 12), {5039, 5039}}, [][]int{{}, {13, 1}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHarness(t, 64, false)
			var sent []int
			h.kernel.script = func(msgs []message) (int, unix.Errno) {
				for i := range msgs {
					sent = append(sent, msgs[i].packets)
				}
				return len(msgs), 0
			}
			var got [][]int
			for i, sizes := range tt.batches {
				sent = []int{}
				h.memory = make([]byte, 1<<20)
				batch := h.memory
				for _, size := range sizes {
					h.put(peerB, 0, size, 0)
				}
				if i < len(tt.batches)-1 {
					h.hold()
					clear(batch) // the engine uses it again
				} else {
					h.flush()
				}
				got = append(got, sent)
			}
			if !slices.EqualFunc(got, tt.want, slices.Equal) {
				t.Errorf("batches of messages of %v packets, want %v", got, tt.want)
			}
			h.check(t)
		})
	}
}

func TestTrainsThatWaitAreNotLostToErrors(t *testing.T) {
	for name, script := range map[string]func([]message) (int, unix.Errno){
		"EAGAIN":      outcomes(unix.EAGAIN, 0, unix.EAGAIN),
		"ENOBUFS":     outcomes(unix.ENOBUFS, unix.ENOBUFS, unix.ENOBUFS),
		"GSO refused": refuseTrains(unix.EIO),
	} {
		h := newHarness(t, 64, false)
		h.kernel.script = script
		for range 3 {
			h.trains()
			h.put(peerC, 0, 500, 0)
			h.put(peerC, 0, 500, 0)
			h.hold()
		}
		if n := len(h.kernel.wire); n == 0 || n > len(h.want) {
			t.Errorf("%s: %d packets on the wire before the end", name, n)
		}
		h.check(t)
	}
}

func TestStoppedEngineKeepsNothing(t *testing.T) {
	h := newHarness(t, 64, false)
	h.stopped = true
	h.kernel.script = func([]message) (int, unix.Errno) { return 0, unix.EAGAIN }
	h.trains()
	h.put(peerC, 0, 500, 0)
	h.put(peerC, 0, 500, 0)
	h.hold()
	if len(h.msgs) != 0 || h.waits != 1 {
		t.Errorf("%d messages kept, waited %d times", len(h.msgs), h.waits)
	}
}
