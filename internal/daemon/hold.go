package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// onLost says what to do when another node has the lease, or none.
type onLost string

const (
	reacquireOnLost onLost = "reacquire"
	exitOnLost      onLost = "exit"
)

// UnmarshalText implements encoding.TextUnmarshaler.
func (o *onLost) UnmarshalText(text []byte) error {
	switch v := onLost(text); v {
	case reacquireOnLost, exitOnLost:
		*o = v
		return nil
	}
	return fmt.Errorf("want %s or %s", reacquireOnLost, exitOnLost)
}

// MarshalText implements encoding.TextMarshaler.
func (o onLost) MarshalText() ([]byte, error) { return []byte(o), nil }

const (
	// firstRetry and lastRetry bound how long the holder rests after a
	// failure; the rests double. A store that was away for long is not to be
	// overrun by all nodes when it is back, hence the jitter.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// shortestLease keeps a store that gives out leases shorter than the
	// margin from being asked all the time.
	shortestLease = 10 * time.Second
	// lookAtClock is how often the holder looks whether a renewal is due that no
	// timer reports, because the machine was asleep.
	lookAtClock = time.Minute
)

// holder keeps the lease of this node: it renews it in time, announces what has
// changed, and takes a lease again that was lost.
// It asks the store on a goroutine of its own, since a store that is away may
// keep it waiting for long.
//
// A renewal is due when either of two clocks says so. The monotonic one, which
// timers have, is never set back, but it stands still while the machine
// sleeps, and the lease does not (clock_gettime(2), CLOCK_MONOTONIC). The wall
// clock goes on, but can be set. Who follows the earlier of them renews too early
// at worst.
type holder struct {
	store  lease.Store
	margin time.Duration // a lease is renewed this long before it expires
	onLost onLost
	log    *slog.Logger
	// previous returns what is known of the host when it asks for another lease.
	previous func() lease.Previous

	moved   int           // how often move was called
	moves   chan move     // holds the last one
	nudges  chan struct{} // holds one
	results chan result

	// What tests shorten.
	shortest time.Duration
	retry    time.Duration
	look     time.Duration
	// What tests replace.
	now func() time.Time
}

// move is a change of what the node announces.
type move struct {
	number int
	to     lease.Attrs
}

// result is what became of an attempt.
type result struct {
	lease lease.Lease // as it now stands
	moved int         // the number of the last move that it took in
	err   error       // not nil: the store does not have the lease that is wanted
}

func newHolder(store lease.Store, margin time.Duration, onLost onLost, log *slog.Logger) *holder {
	return &holder{
		store: store, margin: margin, onLost: onLost, log: log,
		moves: make(chan move, 1), nudges: make(chan struct{}, 1), results: make(chan result),
		shortest: shortestLease, retry: firstRetry, look: lookAtClock, now: time.Now,
		previous: func() lease.Previous { return lease.Previous{} },
	}
}

// move sets what the node announces from now on. It does not block;
// it must not run at the same time as itself.
func (h *holder) move(to lease.Attrs) {
	select {
	case <-h.moves: // overtaken
	default:
	}
	h.moved++
	h.moves <- move{h.moved, to}
}

// nudge says that the store has changed: the lease may be lost, or there may be
// one where there was none. It does not block.
func (h *holder) nudge() {
	select {
	case h.nudges <- struct{}{}:
	default:
	}
}

// run keeps own, which the store has just given, until ctx is done. It returns
// an error before that only if the lease is lost and that is to end the daemon.
// It sends to results what comes of each attempt.
func (h *holder) run(ctx context.Context, own lease.Lease) error {
	k := tenure{holder: h, own: own, want: own.Attrs, stored: true}
	timer := h.newAlarm(h.untilRenewal(own))
	defer timer.stop()
	var failures int
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-h.moves:
			k.taken, k.want = m.number, m.to
			failures = 0
		case <-h.nudges:
		case <-timer.C:
		case <-timer.looks.C:
			if !timer.isDue() {
				continue
			}
		}
		err := k.attempt(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			failures = 0
			timer.set(h.untilRenewal(k.own))
		case k.ends(err):
			return err
		default:
			failures++
			timer.set(h.rest(failures))
		}
		if err != nil && k.stands() {
			continue // there is time left to renew it
		}
		select {
		case h.results <- result{k.own, k.taken, err}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alarm is a timer that also looks at the wall clock.
type alarm struct {
	*time.Timer
	looks *time.Ticker // when to ask isDue
	now   func() time.Time
	due   time.Time // by the wall clock
}

func (h *holder) newAlarm(d time.Duration) *alarm {
	return &alarm{time.NewTimer(d), time.NewTicker(h.look), h.now, h.now().Round(0).Add(d)}
}

// set makes the alarm go off after d.
func (a *alarm) set(d time.Duration) {
	a.Reset(d)
	a.due = a.now().Round(0).Add(d)
}

// isDue says whether the wall clock has reached the time that was set.
func (a *alarm) isDue() bool { return !a.now().Round(0).Before(a.due) }

func (a *alarm) stop() {
	a.Stop()
	a.looks.Stop()
}

// tenure is what run knows.
type tenure struct {
	*holder
	own    lease.Lease
	want   lease.Attrs
	taken  int    // number of the last move, to want
	stored bool   // as far as is known own is in the store
	logged string // the last error
}

// attempt makes the store say what it should: that own is this node's, at the
// address that it has now.
func (k *tenure) attempt(ctx context.Context) error {
	err := k.try(ctx)
	switch {
	case ctx.Err() != nil: // no fault of the store
	case err == nil:
		k.logged = ""
	case err.Error() != k.logged:
		k.logged = err.Error()
		k.log.Warn("lease not kept, trying again", logging.KeySubnet, k.own.Subnets(), logging.KeyError, err)
	}
	return err
}

func (k *tenure) try(ctx context.Context) error {
	wanted := k.own
	wanted.Attrs = k.want
	if k.stored {
		renewed, err := k.store.Renew(ctx, &wanted)
		if err == nil {
			return k.take(renewed)
		}
		if !errors.Is(err, lease.ErrLost) && !errors.Is(err, lease.ErrNoLease) {
			return err
		}
		// A store may know a node by its address only, so that one which has
		// moved has to ask for its subnet again.
		k.stored = false
		if k.stayed() {
			k.log.Warn("lease lost", logging.KeySubnet, k.own.Subnets(), logging.KeyError, err)
			if k.onLost == exitOnLost {
				return err
			}
		}
	}
	prev := k.previous()
	prev.Subnet, prev.IPv6Subnet = k.own.Subnet, k.own.IPv6Subnet
	l, err := k.store.Acquire(ctx, wanted.Attrs, prev)
	if err != nil {
		return err
	}
	if err := k.take(l); err != nil {
		return err
	}
	k.log.Info("lease acquired", logging.KeySubnet, l.Subnets())
	return nil
}

// take takes over what the store has given, unless it says that this node is
// where it is not: a lease in a file may have one of its addresses
// right and the other one old.
func (k *tenure) take(l *lease.Lease) error {
	for _, a := range [][2]netip.Addr{{l.PublicIP, k.want.PublicIP}, {l.PublicIPv6, k.want.PublicIPv6}} {
		if a[0].IsValid() && a[1].IsValid() && a[0] != a[1] {
			return fmt.Errorf("the lease %s says that this node is at %s, it is at %s: correct the lease", l.Key(), a[0], a[1])
		}
	}
	k.own, k.want, k.stored = *l, l.Attrs, true
	return nil
}

// stayed says whether the node is where its lease says.
func (k *tenure) stayed() bool {
	return k.want.PublicIP == k.own.PublicIP && k.want.PublicIPv6 == k.own.PublicIPv6
}

// stands says whether the lease is as wanted and still valid.
func (k *tenure) stands() bool {
	return k.stored && k.stayed() && (k.own.Expiration.IsZero() || time.Now().Before(k.own.Expiration))
}

// ends says whether the daemon is to end because of err.
func (k *tenure) ends(err error) bool {
	lost := errors.Is(err, lease.ErrLost) || errors.Is(err, lease.ErrNoLease)
	return k.onLost == exitOnLost && !k.stored && k.stayed() && lost
}

// untilRenewal returns how long l can be left alone.
func (h *holder) untilRenewal(l lease.Lease) time.Duration {
	if l.Expiration.IsZero() {
		return 1<<63 - 1 // for ever
	}
	return max(time.Until(l.Expiration)-h.margin, h.shortest)
}

// rest returns how long to wait after so many failures in a row.
func (h *holder) rest(failures int) time.Duration {
	d := min(h.retry<<min(failures-1, 10), lastRetry)
	return d/2 + rand.N(d/2+1)
}
