package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// session is the daemon once its store is open: it determines this node's part in
// the network and maintains it.
//
//	store, interfaces, lease holder, timers
//	      │ an event changes the inputs       inputs.go
//	      ▼
//	   inputs ── plan ──► want                plan.go
//	                        │ compared with what is applied, announced
//	                        ▼ attributes included; what differs is done
//	                     applied              apply.go
//	      │
//	      ▼
//	   status, readiness, log                 report.go
//
// All of it runs on one goroutine, which may be in a network namespace that the
// others are not in.
type session struct {
	*daemon
	store   openedStore
	holder  *holder
	in      inputs
	applied applied

	unplanned bool                   // leases have changed since the plan's peers were taken
	relinked  bool                   // an interface has changed since in.outside was read
	settled   time.Time              // when the plan was last applied
	macsOf    node                   // for which in.self.MACs were read
	kept      result                 // outcome of the last attempt to keep the lease
	confirmed int                    // number of the last announcement that the store confirmed
	conflicts []*lease.ConflictError // leases that were left out of the plan's peers
	source    sourceHealth           // health of the store's updates
	due       *time.Timer            // runs while changed leases wait for others
	retry     *time.Timer            // runs after something failed
	attempt   attempt                // the last one to open a data plane
	lapse     *time.Timer            // runs while former backends stay open
	shown     shown                  // text last logged for each kind of message
	waiting   string                 // what keeps the node from being ready
	reason    metrics.Wait           // the kind of waiting
	twin      string                 // describes another host with this one's public address; empty if none was seen
	twinSeen  time.Time              // when it was last seen
	listed    bool                   // this node's lease in the store has had the node's ID
	anonymous lease.Attrs            // the last attributes without the node's ID that were announced
	offered   *handover.Offer        // nil if no process is taking over
	answers   chan answer            // receives the outcome of offered
	reloading bool                   // the service manager waits for a reload to complete
}

// attempt is the outcome of opening a data plane.
type attempt struct {
	node node
	err  error
	at   time.Time
}

// retryAfter is the pause before something that failed is tried again. Most
// failures are retried earlier, when an interface changes.
const retryAfter = time.Second

// formerStays is how long a former backend stays open: enough for the peers to learn the
// new configuration and this node's new announcement, even from a store that is slow to
// report changes.
const formerStays = 10 * time.Second

// newSession returns the session of a node that has not joined yet.
func (d *daemon) newSession(store openedStore) *session {
	lost := d.options.onLost
	if !store.writable {
		lost = reacquireOnLost // as soon as an operator has restored the lease
	}
	s := &session{
		daemon:  d,
		store:   store,
		holder:  newHolder(store, time.Duration(d.options.renewMargin)*time.Minute, lost, d.log),
		in:      inputs{options: d.options, leases: new(lease.Set), writable: store.writable, kernelPath: d.usesKernelPath()},
		due:     time.NewTimer(between),
		retry:   time.NewTimer(retryAfter),
		lapse:   time.NewTimer(formerStays),
		shown:   shown{"source": "", "conflicts": ""},
		answers: make(chan answer),
	}
	s.holder.previous = d.previous
	s.due.Stop()
	s.retry.Stop()
	s.lapse.Stop()
	return s
}

// events are the channels that a session follows.
type events struct {
	updates        chan lease.Update // of the store
	links          <-chan struct{}   // an interface has changed
	watch, holding <-chan error      // the watch of the store, or the lease holder, has ended
}

// run keeps the node in the desired state until ctx is done or something fails. The
// node must have joined; links receives a value when an interface has changed. When
// run returns, everything it started has ended.
func (s *session) run(ctx context.Context, links <-chan struct{}) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	e := events{updates: make(chan lease.Update), links: links}
	e.watch = start("watch leases", func() error { return s.store.Watch(ctx, e.updates) })
	defer await(e.watch)
	own := s.in.own
	e.holding = start("keep the lease", func() error { return s.holder.run(ctx, own) })
	defer await(e.holding)
	defer func() { err = errors.Join(err, s.close()) }()
	defer s.awaitRules()
	defer cancel()

	// No packet is forwarded before the peers are known: it would be dropped and
	// counted as an error.
	if err := s.awaitLeases(ctx, e); err != nil || ctx.Err() != nil {
		return err
	}
	if err := s.reconcile(ctx); err != nil {
		// At the start a missing object may never appear, so this is fatal. Later it
		// is retried.
		return errors.Unwrap(err)
	}
	if err := s.succeed(); err != nil {
		return err
	}
	s.report(nil)
	if s.opened != nil {
		s.opened()
		s.opened = nil
	}
	defer s.probePeers(ctx)()
	switch err = s.handle(ctx, e); {
	case errors.Is(err, errYield):
		return err
	case errors.Is(err, errHandedOver):
		return nil
	}
	s.notifyManager(notifyStopping)
	if ctx.Err() != nil {
		s.log.Info("stopping", logging.KeyWhy, context.Cause(ctx))
		return nil
	}
	return err
}

// awaitLeases waits for the first good update of the store, or the end of ctx.
func (s *session) awaitLeases(ctx context.Context, e events) error {
	s.waitFor(metrics.WaitStore, "the first leases")
	for s.source.updated.IsZero() {
		select {
		case <-ctx.Done():
			return nil
		case err := <-e.watch:
			return err
		case err := <-e.holding:
			return err
		case u := <-e.updates:
			s.follow(u)
			s.publish()
			if err := s.answer(); err != nil {
				return err
			}
		}
	}
	return nil
}

// missing is what the node lacks to be ready, and why.
type missing struct {
	reason metrics.Wait
	what   string
	err    error
}

func (m *missing) Error() string { return fmt.Sprintf("%s: %v", m.what, m.err) }
func (m *missing) Unwrap() error { return m.err }

// start runs f, which should run until it is stopped. The channel receives the
// error with which f ended, even if f panicked or returned nil, and is then closed.
func start(what string, f func() error) <-chan error {
	c := make(chan error, 1)
	go func() {
		defer close(c)
		defer func() {
			if p := recover(); p != nil {
				c <- fmt.Errorf("%s: panic: %v", what, p)
			}
		}()
		err := f()
		if err == nil {
			err = errors.New("stopped unexpectedly")
		}
		c <- fmt.Errorf("%s: %w", what, err)
	}()
	return c
}

// await waits for the end of a goroutine that start started.
func await(c <-chan error) {
	for range c {
	}
}
