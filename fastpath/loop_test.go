package fastpath

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/metrics"
)

// script is a direction whose polls find as many bytes as sizes lists, one after the
// other and then none.
type script struct {
	sizes []int
	brief []bool // for each poll, whether it was to be brief
}

func (s *script) poll(brief bool) (int, bool, error) {
	s.brief = append(s.brief, brief)
	if len(s.sizes) == 0 {
		return 0, false, nil
	}
	n := s.sizes[0]
	s.sizes = s.sizes[1:]
	return n, true, nil
}

// look looks n times at directions, which are in one loop.
func look(t *testing.T, n int, directions ...direction) *loop {
	t.Helper()
	l := &loop{brief: true, stopping: new(atomic.Bool)}
	lookWith(t, l, n, directions...)
	return l
}

// lookWith is look with a loop that has no directions yet.
func lookWith(t *testing.T, l *loop, n int, directions ...direction) {
	t.Helper()
	for _, d := range directions {
		l.add(d, -1, new(metrics.Direction))
	}
	for range n {
		if _, _, err := l.look(); err != nil {
			t.Fatal(err)
		}
	}
}

// repeat returns n batches of size bytes.
func repeat(size, n int) []int { return slices.Repeat([]int{size}, n) }

func TestBatchesOfABulkTransferAreBriefBesideRequests(t *testing.T) {
	const n = 20
	bulk := &script{sizes: repeat(500_000, n)}
	requests := &script{sizes: append(repeat(0, 4), 100)}
	l := look(t, n, bulk, requests)
	if got := slices.Index(bulk.brief, true); got != 5 || slices.Contains(bulk.brief[5:], false) {
		t.Errorf("brief: %v; want all batches after the first request, the 5th look", bulk.brief)
	}
	if slices.Contains(requests.brief, true) {
		t.Error("batches of requests are brief")
	}
	if got := l.c.BriefBatches.Load(); got != n-5 {
		t.Errorf("counted %d brief batches of %d", got, n-5)
	}
}

func TestBatchesAreNotBriefWhereThatIsOff(t *testing.T) {
	const n = 20
	bulk := &script{sizes: repeat(500_000, n)}
	l := &loop{stopping: new(atomic.Bool)}
	lookWith(t, l, n, bulk, &script{sizes: repeat(100, n)})
	if slices.Contains(bulk.brief, true) || l.c.BriefBatches.Load() != 0 {
		t.Errorf("brief: %v, and %d counted", bulk.brief, l.c.BriefBatches.Load())
	}
}

func TestBatchesAreWholeWhereNothingElseWaits(t *testing.T) {
	const n = briefLooks + 20
	for name, other := range map[string][]int{
		"alone":                              nil,
		"beside another transfer":            repeat(500_000, n),
		"beside a transfer's short rests":    slices.Repeat([]int{500_000, 2900}, n/2),
		"once requests ended, after a while": {100},
	} {
		bulk := &script{sizes: repeat(500_000, n)}
		look(t, n, bulk, &script{sizes: other})
		if last := bulk.brief[briefLooks:]; slices.Contains(last[2:], true) {
			t.Errorf("%s: brief: %v", name, last)
		}
	}
}

func TestBriefBatchLeavesTheRestForLater(t *testing.T) {
	q := new(fakeQueue)
	for range 5 {
		q.reads = append(q.reads, superPacket(toB(60_000), 1400))
	}
	x, k := newTestTX(t, q)
	if n, more, err := x.poll(true); n < briefBytes || n > 3*briefBytes || !more || err != nil {
		t.Errorf("sent %d bytes in a brief batch, more %v, %v", n, more, err)
	}
	sent := len(k.wire)
	for more := true; more; {
		var err error
		if _, more, err = x.poll(false); err != nil {
			t.Fatal(err)
		}
	}
	if all := 5 * 43; len(k.wire) != all || sent == 0 || sent >= all {
		t.Errorf("sent %d packets in the brief batch, and %d in all; want some, and %d", sent, len(k.wire), all)
	}

	fd, peer := loopbackPair(t)
	r := newSockRX(fd)
	for range 2*briefMessages + 1 {
		if err := unix.Sendto(peer.fd, toB(100).bytes(), 0, peer.name); err != nil {
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(testkit.Patience)
	for got := uint64(0); got < 2*briefMessages+1; {
		_, more, err := r.poll(true)
		n := r.c.Datagrams.Load() - got
		if n > briefMessages || more != (n == briefMessages) || err != nil {
			t.Fatalf("received %d datagrams in a brief batch, more %v, %v", n, more, err)
		}
		if got += n; time.Now().After(deadline) {
			t.Fatalf("received %d datagrams", got)
		}
	}
}

// TestLoopThatCannotWaitFails: it would otherwise end as if the engine had been stopped,
// and the other directions would go on without it.
func TestLoopThatCannotWaitFails(t *testing.T) {
	const notOpen = 1 << 30
	l := &loop{wake: newWaiter(notOpen), stopping: new(atomic.Bool), c: new(metrics.Direction)}
	if err := l.run(); err == nil {
		t.Error("the loop ended without an error")
	}
}
