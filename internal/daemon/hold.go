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

// onLost is the action to take when the lease is lost: another node has it, or
// it is gone.
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
	// firstRetry and lastRetry bound the pauses after a failure, which double.
	// Jitter keeps the nodes from overloading a store that is back after a long
	// outage.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// shortestLease limits the rate of renewals if a store grants leases shorter
	// than the margin.
	shortestLease = 10 * time.Second
	// lookAtClock is how often the holder checks for a renewal that became due
	// while the machine was suspended, which timers miss.
	lookAtClock = time.Minute
)

// holder keeps the lease of this node: it renews the lease in time, announces
// changes, and acquires a lost lease again. It calls the store on its own
// goroutine, since a store that is unreachable may block for long.
//
// A renewal is due when either of two clocks reaches its time. The monotonic
// clock, which timers use, is never set back, but it stops while the machine is
// suspended, during which the lease keeps running out (clock_gettime(2),
// CLOCK_MONOTONIC). The wall clock keeps running, but can be set. Following the
// earlier of the two renews too early at worst.
type holder struct {
	store  lease.Store
	margin time.Duration // a lease is renewed this long before it expires
	onLost onLost
	log    *slog.Logger
	// previous returns what is known about the host, for acquiring another lease.
	previous func() lease.Previous

	moved   int           // number of calls of move
	moves   chan move     // holds only the last one
	nudges  chan struct{} // holds one
	results chan result

	// Tests shorten these.
	shortest time.Duration
	retry    time.Duration
	look     time.Duration
	// Tests replace this.
	now func() time.Time
}

// move is a change of what the node announces.
type move struct {
	number int
	to     lease.Attrs
}

// result is the outcome of an attempt.
type result struct {
	lease lease.Lease // as it now stands
	moved int         // number of the last move that it includes
	err   error       // not nil if the store does not have the wanted lease
}

func newHolder(store lease.Store, margin time.Duration, onLost onLost, log *slog.Logger) *holder {
	return &holder{
		store: store, margin: margin, onLost: onLost, log: log,
		moves: make(chan move, 1), nudges: make(chan struct{}, 1), results: make(chan result),
		shortest: shortestLease, retry: firstRetry, look: lookAtClock, now: time.Now,
		previous: func() lease.Previous { return lease.Previous{} },
	}
}

// move sets what the node announces from now on. It does not block. It must not
// be called concurrently.
func (h *holder) move(to lease.Attrs) {
	select {
	case <-h.moves: // superseded
	default:
	}
	h.moved++
	h.moves <- move{h.moved, to}
}

// nudge makes the holder check the lease because the store has changed: the
// lease may be lost, or one may be available now. It does not block.
func (h *holder) nudge() {
	select {
	case h.nudges <- struct{}{}:
	default:
	}
}

// run keeps own, which the store has just granted, until ctx is done. It
// returns an error earlier only if the lease is lost and onLost requires an exit.
// It sends the outcome of each attempt to results.
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

// alarm is a timer that also follows the wall clock.
type alarm struct {
	*time.Timer
	looks *time.Ticker // fires when isDue has to be checked
	now   func() time.Time
	due   time.Time // by the wall clock
}

func (h *holder) newAlarm(d time.Duration) *alarm {
	return &alarm{time.NewTimer(d), time.NewTicker(h.look), h.now, h.now().Round(0).Add(d)}
}

// set sets the alarm to go off after d.
func (a *alarm) set(d time.Duration) {
	a.Reset(d)
	a.due = a.now().Round(0).Add(d)
}

// isDue reports whether the wall clock has reached the time that was set.
func (a *alarm) isDue() bool { return !a.now().Round(0).Before(a.due) }

func (a *alarm) stop() {
	a.Stop()
	a.looks.Stop()
}

// tenure is the state of run.
type tenure struct {
	*holder
	own    lease.Lease
	want   lease.Attrs
	taken  int    // number of the last move, which set want
	stored bool   // as far as is known, own is in the store
	logged string // the last error
}

// attempt brings the store up to date, so that own belongs to this node at its present
// address.
func (k *tenure) attempt(ctx context.Context) error {
	err := k.try(ctx)
	switch {
	case ctx.Err() != nil: // not a failure of the store
	case err == nil:
		k.logged = ""
	case err.Error() != k.logged:
		k.logged = err.Error()
		k.log.Warn("cannot keep the lease, trying again", logging.KeySubnet, k.own.Subnets(), logging.KeyError, err)
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
		// A store may identify a node by its address only, so a node whose address
		// has changed has to acquire its subnet again.
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

// take adopts the lease that the store returned, unless it has a wrong address
// for this node: in a lease file one of the addresses may be right and the
// other outdated.
func (k *tenure) take(l *lease.Lease) error {
	for _, a := range [][2]netip.Addr{{l.PublicIP, k.want.PublicIP}, {l.PublicIPv6, k.want.PublicIPv6}} {
		if a[0].IsValid() && a[1].IsValid() && a[0] != a[1] {
			return fmt.Errorf("the lease %s has this node at %s, but it is at %s: correct the lease", l.Key(), a[0], a[1])
		}
	}
	k.own, k.want, k.stored = *l, l.Attrs, true
	return nil
}

// stayed reports whether the node still has the addresses of its lease.
func (k *tenure) stayed() bool {
	return k.want.PublicIP == k.own.PublicIP && k.want.PublicIPv6 == k.own.PublicIPv6
}

// stands reports whether the lease is as wanted and still valid.
func (k *tenure) stands() bool {
	return k.stored && k.stayed() && (k.own.Expiration.IsZero() || time.Now().Before(k.own.Expiration))
}

// ends reports whether err has to end the daemon.
func (k *tenure) ends(err error) bool {
	lost := errors.Is(err, lease.ErrLost) || errors.Is(err, lease.ErrNoLease)
	return k.onLost == exitOnLost && !k.stored && k.stayed() && lost
}

// untilRenewal returns the time until l has to be renewed.
func (h *holder) untilRenewal(l lease.Lease) time.Duration {
	if l.Expiration.IsZero() {
		return 1<<63 - 1 // never
	}
	return max(time.Until(l.Expiration)-h.margin, h.shortest)
}

// rest returns the pause after the given number of consecutive failures.
func (h *holder) rest(failures int) time.Duration {
	d := min(h.retry<<min(failures-1, 10), lastRetry)
	return d/2 + rand.N(d/2+1)
}
