package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// forward carries the traffic of n, after which it keeps the data plane as
// store, interface and lease are, until ctx is done or something fails. links
// receives when an interface has changed. When it returns nothing of what it
// started runs any more.
func (d *daemon) forward(ctx context.Context, store lease.Store, n node, links <-chan struct{}) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan lease.Update)
	watch := start("watch leases", func() error { return store.Watch(ctx, updates) })
	defer await(watch)
	lost := d.options.onLost
	if !d.reacquires {
		lost = reacquireOnLost // as soon as an operator has put it back
	}
	s := &session{
		daemon: d, node: n,
		holder: newHolder(store, time.Duration(d.options.renewMargin)*time.Minute, lost, d.log),
		retry:  time.NewTimer(retryAfter),
		due:    time.NewTimer(between),
		told:   "nothing yet",
	}
	s.retry.Stop()
	s.due.Stop()
	s.firewall.resync = time.Duration(d.options.resync) * time.Second
	s.firewall.log, s.firewall.state = d.log, d.state
	holding := start("keep the lease", func() error { return s.holder.run(ctx, n.own) })
	defer await(holding)
	defer func() { err = errors.Join(err, s.close()) }()
	defer s.firewall.wait()
	defer cancel()

	// Not a packet is forwarded before the peers are known: it would be
	// dropped, and counted as if something were wrong.
	s.state.waitFor("the first leases")
	for s.latest == nil {
		select {
		case <-ctx.Done():
			return nil
		case err := <-watch:
			return err
		case err := <-holding:
			return err
		case u := <-updates:
			s.apply(u)
		}
	}
	if err := s.reconcile(ctx); err != nil {
		// What is missing now may never come; later it has been there.
		return errors.Unwrap(err)
	}
	s.tell(nil)

	// Sent from here, it says that what keeps all else up to date is alive.
	var alive <-chan time.Time
	if d.watchdog > 0 && d.notifySocket != "" {
		ticker := time.NewTicker(d.watchdog)
		defer ticker.Stop()
		alive = ticker.C
	}
	// What others have removed is put back.
	look := time.NewTicker(s.firewall.resync)
	defer look.Stop()
	for err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case err = <-s.ended():
			if errors.Is(err, backend.ErrDeviceGone) {
				s.replaceDevice(ctx, err)
				err = nil
			}
		case err = <-watch:
		case err = <-holding:
		case u := <-updates:
			s.apply(u)
			s.settle(ctx)
		case h := <-s.holder.results:
			s.hold(h)
			s.settle(ctx)
		case <-links:
			s.settle(ctx)
		case <-s.due.C:
			if s.stale && s.upToDate() { // or else it has been told with something else
				s.setLeases()
			}
		case <-s.retry.C:
			s.settle(ctx)
		case <-look.C:
			s.settle(ctx)
		case <-alive:
			d.tellManager(notifyAlive)
		}
	}
	d.tellManager(notifyStopping)
	if ctx.Err() != nil {
		d.log.Info("stopping", logging.KeyWhy, context.Cause(ctx))
		return nil
	}
	return err
}

// tellManager tells the service manager a state. That it does not listen is no
// reason to end; it will say itself what it misses.
func (d *daemon) tellManager(state string) {
	if err := notify(d.notifySocket, state); err != nil {
		d.log.Warn("service manager not told", logging.KeyError, err)
	}
}

// start runs f, which is to run until it is stopped. The channel gives the
// error with which f ended, also if that was a panic or no error at all, and
// is closed then.
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
			err = errors.New("ended by itself")
		}
		c <- fmt.Errorf("%s: %w", what, err)
	}()
	return c
}

// await waits until what start started has ended.
func await(c <-chan error) {
	for range c {
	}
}
