package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// lender is a store that gives leases for a term and can be made to fail.
type lender struct {
	lease.Store
	term time.Duration

	mu       sync.Mutex
	fails    error // of all requests
	lost     bool  // the next renewal finds nothing
	full     error // of Acquire
	renewals []time.Time
}

func (l *lender) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fails = err
}

func (l *lender) Renew(_ context.Context, own *lease.Lease) (*lease.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.renewals = append(l.renewals, time.Now())
	switch {
	case l.fails != nil:
		return nil, l.fails
	case l.lost:
		return nil, lease.ErrLost
	}
	now := *own
	now.Expiration = time.Now().Add(l.term)
	return &now, nil
}

func (l *lender) Acquire(_ context.Context, a lease.Attrs, prev lease.Previous) (*lease.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(l.fails, l.full); err != nil {
		return nil, err
	}
	l.lost = false
	return &lease.Lease{Attrs: a, Subnet: prev.Subnet, Expiration: time.Now().Add(l.term)}, nil
}

// runHolder runs a holder of a lease of a term, with a margin.
func runHolder(t *testing.T, l *lender, term, margin time.Duration) *holder {
	t.Helper()
	return runHolderBy(t, time.Now, l, term, margin)
}

// runHolderBy is runHolder with a wall clock.
func runHolderBy(t *testing.T, clock func() time.Time, l *lender, term, margin time.Duration) *holder {
	t.Helper()
	h := newHolder(l, margin, reacquireOnLost, slog.New(slog.NewTextHandler(io.Discard, nil)))
	h.shortest, h.retry, h.look, h.now = time.Millisecond, time.Millisecond, time.Millisecond, clock
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	own := lease.Lease{
		Attrs:      lease.Attrs{PublicIP: eth0.PublicIP},
		Subnet:     netip.MustParsePrefix("10.5.1.0/24"),
		Expiration: time.Now().Add(term),
	}
	go func() { ended <- h.run(ctx, own) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the holder ended with %v", err)
		}
	})
	return h
}

func (h *holder) next(t *testing.T) result {
	t.Helper()
	return testkit.Receive(t, "the holder reports a lease or an error", h.results)
}

func TestLeaseIsRenewedBeforeItEndsByTheMargin(t *testing.T) {
	l := &lender{term: time.Hour}
	begin := time.Now()
	h := runHolder(t, l, time.Hour+50*time.Millisecond, time.Hour)
	if r := h.next(t); r.err != nil || time.Until(r.lease.Expiration) < 59*time.Minute {
		t.Errorf("got %+v", r)
	}
	if at := l.renewals[0].Sub(begin); at < 50*time.Millisecond {
		t.Errorf("renewed after %v, want 50 ms", at)
	}
}

// settable is a wall clock that can be set.
type settable struct{ step, looks atomic.Int64 }

func (c *settable) now() time.Time {
	c.looks.Add(1)
	return time.Now().Add(time.Duration(c.step.Load()))
}

// set sets the clock and waits until the holder has looked at it.
func (c *settable) set(t *testing.T, step time.Duration) {
	t.Helper()
	c.step.Store(int64(step))
	enough := c.looks.Load() + 5
	testkit.Eventually(t, "the holder looks at the clock", func() bool { return c.looks.Load() >= enough })
}

func (l *lender) renewed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.renewals)
}

func TestClockThatIsSetBackDelaysNoRenewal(t *testing.T) {
	l, clock := &lender{term: time.Hour}, new(settable)
	h := runHolderBy(t, clock.now, l, time.Hour+200*time.Millisecond, time.Hour)
	for _, step := range []time.Duration{0, -5 * time.Hour} {
		clock.step.Store(int64(step))
		enough := clock.looks.Load() + 5
		// On a busy machine the renewal may come first; the holder then waits for next.
		testkit.Eventually(t, "the holder looks at the clock, or renews", func() bool {
			return clock.looks.Load() >= enough || l.renewed() > 0
		})
	}
	if r := h.next(t); r.err != nil {
		t.Errorf("got %+v", r)
	}
}

// It does so while the machine sleeps, when no timer runs.
func TestRenewalIsDueWhenTheClockHasGoneOnWithoutTheTimer(t *testing.T) {
	l, clock := &lender{term: 24 * time.Hour}, new(settable)
	h := runHolderBy(t, clock.now, l, 24*time.Hour, time.Hour)
	clock.set(t, 0)
	clock.set(t, 22*time.Hour)
	if n := l.renewed(); n != 0 {
		t.Errorf("renewed %d times an hour before it is due", n)
	}
	clock.step.Store(int64(30 * time.Hour))
	if r := h.next(t); r.err != nil {
		t.Errorf("got %+v", r)
	}
	clock.set(t, 31*time.Hour)
	if n := l.renewed(); n != 1 {
		t.Errorf("renewed %d times, want once", n)
	}
}

// While the store is away the lease stays valid, so nothing is reported.
func TestRenewalThatFailsIsTriedAgainWhileTheLeaseStands(t *testing.T) {
	l := &lender{term: time.Hour}
	l.fail(errors.New("no answer"))
	h := runHolder(t, l, time.Minute, time.Hour)
	for tries := 0; tries < 3; {
		l.mu.Lock()
		tries = len(l.renewals)
		l.mu.Unlock()
		select {
		case r := <-h.results:
			t.Fatalf("reported %+v", r)
		case <-time.After(time.Millisecond):
		}
	}
	l.fail(nil)
	if r := h.next(t); r.err != nil {
		t.Errorf("got %+v", r)
	}
}

func TestLeaseThatExpiresUnrenewedIsReported(t *testing.T) {
	l := &lender{term: time.Hour}
	away := errors.New("no answer")
	l.fail(away)
	h := runHolder(t, l, 20*time.Millisecond, time.Hour)
	if r := h.next(t); !errors.Is(r.err, away) {
		t.Errorf("got %+v, want %v", r, away)
	}
	l.fail(nil)
	for r := h.next(t); r.err != nil; r = h.next(t) {
	}
}

func TestLostLeaseIsAskedForUntilItIsGiven(t *testing.T) {
	full := errors.New("all subnets are taken")
	l := &lender{term: time.Hour, lost: true, full: full}
	h := runHolder(t, l, time.Hour, time.Minute)
	h.nudge()
	if r := h.next(t); !errors.Is(r.err, full) {
		t.Errorf("got %+v, want %v", r, full)
	}
	l.mu.Lock()
	l.full = nil
	l.mu.Unlock()
	r := h.next(t)
	for ; errors.Is(r.err, full); r = h.next(t) { // one that was under way
	}
	if r.err != nil || r.lease.Subnet.String() != "10.5.1.0/24" {
		t.Errorf("got %+v, want the subnet of before", r)
	}
}

func TestLastMoveCounts(t *testing.T) {
	l := &lender{term: time.Hour}
	h := runHolder(t, l, time.Hour, time.Minute)
	for _, ip := range []string{"192.0.2.7", "192.0.2.8", "192.0.2.9"} {
		h.move(lease.Attrs{PublicIP: netip.MustParseAddr(ip)})
	}
	for {
		r := h.next(t)
		if r.err != nil {
			t.Fatal(r.err)
		}
		if r.moved == h.moved {
			if got := r.lease.PublicIP.String(); got != "192.0.2.9" {
				t.Errorf("the lease says %s", got)
			}
			return
		}
	}
}

func TestLeaseShorterThanTheMarginIsNotRenewedAllTheTime(t *testing.T) {
	h := newHolder(nil, time.Hour, reacquireOnLost, nil)
	if d := h.untilRenewal(lease.Lease{Expiration: time.Now().Add(time.Minute)}); d != shortestLease {
		t.Errorf("left alone for %v, want %v", d, shortestLease)
	}
	if d := h.untilRenewal(lease.Lease{}); d < 100*365*24*time.Hour {
		t.Errorf("one that never expires is left alone for %v", d)
	}
}

func TestRestsGrowToABound(t *testing.T) {
	h := newHolder(nil, time.Hour, reacquireOnLost, nil)
	for failures, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 6: lastRetry, 1000: lastRetry} {
		if d := h.rest(failures); d < want/2 || d > want {
			t.Errorf("rest %d takes %v, want between %v and %v", failures, d, want/2, want)
		}
	}
}
