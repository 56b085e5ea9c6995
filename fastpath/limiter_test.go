package fastpath

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

func TestUnreachablesAreLimited(t *testing.T) {
	q := new(fakeQueue)
	x, _ := newTestTX(t, q)
	b := read(tun.Header{}, segment{src: "10.5.1.9", dst: "10.5.99.9"}.bytes())
	start := time.Now()
	transmit(t, x, q, slices.Repeat([][]byte{b}, 2000)...)
	most := icmpSourceBurst + int(time.Since(start).Seconds()*icmpSourceRate) + 1
	if n := len(q.writes); n < icmpSourceBurst || n > most {
		t.Errorf("%d answers, want %d to %d", n, icmpSourceBurst, most)
	}
	if n := drops(x.c)[metrics.DropNoRoute]; n != 2000 {
		t.Errorf("%d dropped", n)
	}
}

// A flood to addresses that no node holds, from any number of pods, takes nothing
// from those that need to learn a path MTU.
func TestUnreachablesLeaveTheBudgetOfTooBigAlone(t *testing.T) {
	h := newHarness(t, 64, false)
	h.path, h.kernel.script = 1000, fits(1000-28, unix.EMSGSIZE)
	s := h.exceptions.shard
	for i := range 256 {
		src := netip.AddrFrom4([4]byte{10, 5, 1, byte(i)})
		for range icmpSourceBurst {
			s.unreachables.allow(src, time.Now())
		}
	}
	for i := range 40 {
		h.addPacket(segment{src: "10.5.1.9", dst: "10.5.2.9", df: true, flags: tcpACK, id: uint16(i), payload: pattern(1200)})
	}
	h.flush()
	if to, _ := h.tooBigs(t); len(to) != 40 {
		t.Errorf("%d of 40 packets that were too big were answered", len(to))
	}
}

func TestOneSourceCannotUseUpTheBudget(t *testing.T) {
	var b budget
	now := time.Now()
	greedy := netip.MustParseAddr("10.5.1.9")
	for range 100 * icmpBurst {
		b.allow(greedy, now)
	}
	// Two sources may share a bucket, though not often.
	served := 0
	for i := range 50 {
		if b.allow(netip.AddrFrom4([4]byte{10, 5, 1, byte(100 + i)}), now) {
			served++
		}
	}
	if served < 40 {
		t.Errorf("%d of 50 other sources were served", served)
	}
}

// However many sources a pod makes up, the total is bounded.
func TestBudgetIsBoundedForAllSourcesTogether(t *testing.T) {
	var b budget
	now := time.Now()
	n := 0
	for i := range 100_000 {
		a := netip.MustParseAddr("fd00::").As16()
		binary.BigEndian.PutUint32(a[12:], uint32(i))
		if b.allow(netip.AddrFrom16(a), now) {
			n++
		}
	}
	if n != icmpBurst {
		t.Errorf("%d errors at once, want %d", n, icmpBurst)
	}
}

func TestLimiter(t *testing.T) {
	const rate, burst = 1000, 50
	var l limiter
	now := time.Now()
	take := func() (n int) {
		for l.allow(now, rate, burst) {
			n++
		}
		return n
	}
	for _, step := range []struct {
		pause time.Duration
		want  int
	}{
		{0, burst}, // full at the start
		{0, 0},
		{time.Second / rate, 1},
		{10 * time.Second / rate, 10},
		{time.Hour, burst}, // no more than that is saved up
	} {
		now = now.Add(step.pause + time.Microsecond)
		if got := take(); got != step.want {
			t.Errorf("after %v: %d, want %d", step.pause, got, step.want)
		}
	}
}
