package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// handle handles events until ctx is done or something ends unexpectedly.
func (s *session) handle(ctx context.Context, e events) error {
	// Keep-alives are sent from this loop, since everything else depends on it.
	var alive <-chan time.Time
	if s.watchdog > 0 && s.notifySocket != "" {
		ticker := time.NewTicker(s.watchdog)
		defer ticker.Stop()
		alive = ticker.C
		// If this process has taken over, the other process sent the last one.
		s.notifyManager(notifyAlive)
	}
	// This restores objects that other programs have removed.
	look := time.NewTicker(s.resync())
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-e.watch:
			return err
		case err := <-e.holding:
			return err
		case err := <-s.applied.ended:
			if !errors.Is(err, dataplane.ErrDeviceGone) {
				return err
			}
			s.closeWithout(err)
		case u := <-e.updates:
			s.follow(u)
			if err := s.answer(); err != nil {
				return err
			}
			if s.waitsForOthers(u) {
				continue
			}
		case r := <-s.holder.results:
			s.takeResult(r)
		case o := <-s.handovers:
			s.offer(ctx, o)
			continue
		case a := <-s.answers:
			if err := s.handOver(a); err != nil {
				return err
			}
		case <-e.links:
			s.relinked = true
		case <-s.due.C:
		case <-s.retry.C:
		case <-s.lapse.C:
			s.in.former = former{}
		case <-look.C:
		case <-alive:
			s.notifyManager(notifyAlive)
			continue
		}
		s.settle(ctx)
	}
}

// resync is the interval at which the session checks that the objects it
// created still exist.
func (s *session) resync() time.Duration { return time.Duration(s.options.resync) * time.Second }

// settle applies as much of the plan as possible, and reports the outcome.
func (s *session) settle(ctx context.Context) {
	defer func() { s.settled = time.Now() }()
	err := s.reconcile(ctx)
	if ctx.Err() != nil {
		return // failures are a consequence of the shutdown
	}
	if err != nil {
		s.retry.Reset(retryAfter)
	}
	s.report(err)
}

// waitsForOthers reports whether the update u, which has been followed, will be settled
// together with those that arrive in a moment, and schedules that. Otherwise updates would
// queue up if leases change faster than they are settled: settling reads the state of the
// interface, and publishes the result, which waits while the status is being read.
func (s *session) waitsForOthers(u lease.Update) bool {
	wait := between - time.Since(s.settled)
	if u.Err != nil || u.Config != nil || !s.unplanned || s.applied.plane == nil || wait <= 0 {
		return false
	}
	s.due.Reset(wait)
	return true
}

// follow processes one update of the store. Invalid parts change nothing.
func (s *session) follow(u lease.Update) {
	denied := errors.Is(u.Err, lease.ErrDenied)
	switch {
	case errors.Is(u.Err, lease.ErrLost):
		s.holder.nudge()
		return
	case u.Err != nil && !denied:
		s.source.refused = u.Err
		s.reportSource()
		return
	}
	s.source.denied = u.Err
	if denied && !u.Changes() {
		s.reportSource()
		return
	}
	// Valid leases do not imply that a refused configuration is now valid, except
	// in a file, which is read as a whole.
	if u.Config != nil || !configFault(s.source.refused) || !s.in.writable {
		s.source.refused = nil
	}
	if u.Config != nil {
		s.in.latest = u.Config
		s.source.unfit = s.adopt(s.in.sameNetworks())
	}
	if s.in.leases.Apply(u) || u.Config != nil {
		s.unplanned = true
	}
	s.source.updated = time.Now()
	s.reportSource()
	if s.leaseProblem() != "" || s.in.writable && s.in.ownGone() != "" {
		s.holder.nudge()
	}
}

// adopt checks whether this node can follow the latest network configuration and,
// with force, puts it into force. A different network is not put into force while the
// node has a subnet of the previous one: this requires a restart or another lease.
// The error is the reason why this node cannot follow it; then nothing is changed.
func (s *session) adopt(force bool) error {
	next := s.in
	next.config = next.latest
	settings, err := next.settings(next.config)
	if err != nil {
		return err
	}
	// The result of probing the backends stays valid while their settings are
	// unchanged.
	if s.in.config == nil || settings != s.in.failed.settings {
		next.failed = failures{Failed: settings.Probe(s.probes), settings: settings}
	}
	if _, _, err := next.backends(); err != nil {
		return err
	}
	if !force {
		return nil
	}
	switch was := s.in.config; {
	case was == nil: // the first configuration
	case !slices.Equal(was.Networks(), next.config.Networks()):
		s.log.Info("network configuration has changed", logging.KeyWas, was.Networks(), logging.KeyNow, next.config.Networks())
	case settings != s.in.failed.settings:
		s.log.Info("backend has changed", logging.KeyWas, describe(was.Backend), logging.KeyNow, describe(next.config.Backend))
		next.former.settings, next.former.choice, _ = s.in.backends() // no error, since they are in force
		s.lapse.Reset(formerStays)
	}
	s.in = next
	return nil
}

// describe returns b as written in the configuration.
func describe(b lease.Backend) string {
	if b.Raw == nil {
		return b.Type
	}
	return string(b.Raw)
}

// takeResult processes the outcome of an attempt to keep the lease.
func (s *session) takeResult(r result) {
	s.kept = r
	if r.err != nil {
		return
	}
	s.confirmed = r.moved
	was := s.in.own
	s.in.own = r.lease
	if was.Key() == r.lease.Key() {
		return
	}
	s.log.Warn("subnet has changed", logging.KeyWas, was.Subnets(), logging.KeyNow, r.lease.Subnets(),
		logging.KeyRemedy, "recreate the pods of this node; running pods have addresses from the old subnet")
	// A different subnet comes from the latest network. If the node cannot follow that
	// configuration, this has been reported.
	if s.adopt(true) == nil {
		s.unplanned = true
	}
}

// takePeers makes the store's leases the peers of the plan, unless peers were
// passed to the data plane just before: each set is complete, and a large unstable
// network may have hundreds of changes a second.
func (s *session) takePeers() {
	// Leases of another network would remove the peers of this one, while the
	// device and routes still belong to this one.
	if !s.unplanned || !s.in.sameNetworks() {
		return
	}
	if wait := between - time.Since(s.applied.passed); wait > 0 && s.applied.plane != nil {
		s.due.Reset(wait)
		return
	}
	s.unplanned = false
	leases, conflicts := lease.Rightful(s.in.leases.Leases(), s.in.own.Key())
	s.in.peers = peers{s.in.peers.version + 1, leases}
	s.conflicts = conflicts
	s.reportConflicts()
}

// between is the minimum time between two sets of peers.
const between = 25 * time.Millisecond

// followLink updates the state of the interface. If it can no longer be used it
// is replaced by the one that would be chosen now. If there is none, the old one
// is kept, since it may come back.
func (s *session) followLink() error {
	was := s.in.link
	now, err := s.stay(was, s.underlayOptions(s.in.config))
	if err != nil {
		var none error
		if now, none = s.chooseLink(s.in.config); none != nil {
			if s.shown.changed("link", reason(none)) {
				s.log.Warn("no other usable interface", logging.KeyError, none)
			}
			return err // unlike the error about the alternatives, it names what to repair
		}
	}
	s.shown.changed("link", "")
	if now.Equal(was) {
		return nil
	}
	s.log.Info("interface has changed", logging.KeyWas, was, logging.KeyNow, now, logging.KeyWhy, now.Why)
	s.in.link = now
	s.retryFailedBackends()
	return nil
}

// followOutside updates the interfaces on which packets of other hosts may arrive, if
// interfaces have changed.
func (s *session) followOutside() {
	if !s.relinked && len(s.in.outside) > 0 && s.in.outside[0] == s.in.link.Name {
		return
	}
	now, err := underlay.Outside(s.in.link.Name, s.in.config.Networks())
	if err != nil {
		if s.shown.changed("outside", err.Error()) {
			s.log.Warn("cannot list the interfaces to other hosts", logging.KeyError, err)
		}
		return // keep those known so far until the next attempt
	}
	s.shown.changed("outside", "")
	s.in.outside, s.relinked = now, false
}

// reason returns why no interface can be used, without the list of the host's
// interfaces, which may change all the time.
func reason(err error) string {
	var none *underlay.NoneError
	if errors.As(err, &none) {
		return none.Tried.Error()
	}
	return err.Error()
}

// retryFailedBackends makes backends eligible again that could not be opened
// with an earlier interface or MTU.
func (s *session) retryFailedBackends() {
	if !s.in.failed.opening {
		return
	}
	next := s.in
	next.failed.Failed = next.failed.settings.Probe(s.probes)
	next.failed.opening = len(next.failed.Failed) > 0
	if _, _, err := next.backends(); err == nil {
		s.in = next
	}
}

// dropFailed records the backends that could not be opened.
func (s *session) dropFailed(f backend.Failed) {
	all := backend.Failed{}
	for _, some := range []backend.Failed{s.in.failed.Failed, f} {
		for b, err := range some {
			all[b] = err
		}
	}
	s.in.failed.Failed, s.in.failed.opening = all, true
}

// sameNetworks reports whether the networks of the latest configuration are those
// in force.
func (in *inputs) sameNetworks() bool {
	return slices.Equal(in.latest.Networks(), in.config.Networks())
}

// ownGone describes how this node lost its lease in the store; "" if it did
// not.
func (in *inputs) ownGone() string {
	own := in.own
	switch is, ok := in.leases.Get(own.Key()); {
	case !ok:
		return fmt.Sprintf("this node's lease %s was deleted", own.Key())
	case is.PublicIP != own.PublicIP || is.PublicIPv6 != own.PublicIPv6:
		return fmt.Sprintf("this node's lease %s now belongs to another public IP", own.Key())
	}
	return ""
}
