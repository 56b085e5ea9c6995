package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// applied is the part of a plan that has been applied, in the same terms as the
// plan.
type applied struct {
	attrs lease.Attrs // as passed to the holder: announced, or about to be

	plane dataPlane // nil if none is open
	node  node      // for which plane was opened
	stop  context.CancelFunc
	ended <-chan error // receives the result of the plane's Run

	peers  uint      // version of the plane's peers
	again  bool      // they should be passed again after some seconds
	passed time.Time // when they were passed

	rules    *rules.Rules // nil if none are kept yet
	rulesEnd <-chan error // result of the goroutine that keeps them
	wanted   rules.Wanted // the rules last set
	env      lease.SubnetEnv
}

// reconcile makes a plan and applies its differences from the applied state. It
// may be called at any time; if everything is as planned it changes nothing. The
// error is a *missing; everything that does not depend on the missing object is
// still applied.
func (s *session) reconcile(ctx context.Context) error {
	noLink := s.followLink()
	if noLink != nil {
		noLink = &missing{metrics.WaitInterface, waitsForLink, noLink}
	}
	s.followOutside()
	s.takePeers()
	w, err := s.plan()
	if err != nil {
		return cmp.Or(noLink, error(&missing{metrics.WaitLease, "a lease", err}))
	}
	if s.applied.plane == nil || !s.applied.node.opensLike(&w.node) {
		if noLink != nil {
			return noLink // the old interface may come back
		}
		if w, err = s.reopen(ctx, w); err != nil {
			return &missing{metrics.WaitDataPlane, "the data plane", err}
		}
	} else if w.peers.version != s.applied.peers || s.applied.again && time.Since(s.applied.passed) >= s.resync() {
		s.pass(w.peers)
	}
	s.announce(w.attrs)
	// The rules precede the subnet file, whose appearance lets pods start.
	if err := s.keepRules(ctx, w.rules); err != nil {
		return &missing{metrics.WaitRules, waitsForRules, err}
	}
	if err := s.writeSubnetEnv(w.env); err != nil {
		return &missing{metrics.WaitSubnetFile, "the subnet file", err}
	}
	return noLink
}

// plan makes the plan.
func (s *session) plan() (want, error) {
	err := s.readMACs()
	var w want
	if err == nil {
		w, err = plan(&s.in)
	}
	if err != nil {
		return w, fmt.Errorf("determine what to announce: %w", err)
	}
	return w, nil
}

// announce announces the attributes of this node, if they have changed. The data
// plane that they describe is open: peers send to it as soon as they read them.
func (s *session) announce(a lease.Attrs) {
	if !a.Equal(s.applied.attrs) {
		s.applied.attrs = a
		if node, _ := dataplane.NodeOf(a); node == "" {
			s.anonymous = a
		}
		s.holder.move(a)
	}
}

// readMACs reads the addresses of the existing VXLAN devices, once for each data
// plane.
func (s *session) readMACs() error {
	settings, choice, err := s.in.backends()
	if err != nil {
		return err
	}
	of := node{link: s.in.link, settings: settings, choice: choice, own: s.in.own}
	if s.macsOf.config != nil && s.macsOf.opensLike(&of) {
		return nil
	}
	macs, err := s.macs(settings, choice)
	if err != nil {
		return err
	}
	of.config = s.in.config
	s.in.self.MACs, s.macsOf = macs, of
	return nil
}

// reopen closes the data plane, if one is open, and opens the one for w. In between,
// packets of the udp backend wait in its descriptors. It returns the plan for the
// backends that could be opened.
func (s *session) reopen(ctx context.Context, w want) (want, error) {
	// Opening a device causes notifications about interfaces, which lead here again.
	if a := &s.attempt; a.err != nil && time.Since(a.at) < retryAfter && a.node.opensLike(&w.node) {
		return w, a.err
	}
	s.waitFor(metrics.WaitDataPlane, "the data plane")
	reopens := s.applied.plane != nil
	if reopens {
		s.state.restarted(s.applied.node.difference(&w.node))
		s.reloading = true
		s.notifyManager(reloadingNow())
		s.reclaimDescriptors()
		if err := s.close(); err != nil {
			s.log.Warn("cannot close the data plane", logging.KeyError, err)
		}
	}
	dp, err := s.open(w.node)
	if err != nil && reopens {
		// The descriptors kept may be in the way: for example, a socket on a port that
		// another backend has now.
		_ = s.inherited.Close() // no pending writes could be lost
		dp, err = s.open(w.node)
	}
	s.attempt = attempt{w.node, err, time.Now()}
	if err != nil {
		return w, err
	}
	if ctx.Err() != nil { // opening does not check it
		return w, errors.Join(ctx.Err(), dp.Close())
	}
	if failed := dp.Failed(); len(failed) > 0 {
		s.dropFailed(failed)
		fewer, err := s.plan()
		if err != nil {
			return w, errors.Join(err, dp.Close())
		}
		w = fewer
	}
	s.reportBackends()
	s.macsOf = node{} // the devices' addresses may have changed
	s.applied.plane, s.applied.node = dp, w.node
	s.pass(w.peers)
	s.begin()
	ctx, s.applied.stop = context.WithCancel(ctx)
	s.applied.ended = start("data plane", func() error { return dp.Run(ctx) })
	s.keepDescriptors() // last, so that packets do not wait for the service manager
	return w, nil
}

// pass passes the peers to the open data plane, which logs its own failures.
func (s *session) pass(p peers) {
	if p.version != s.applied.peers {
		s.reportLeases()
	}
	s.applied.again = s.applied.plane.SetLeases(p.leases)
	s.applied.peers, s.applied.passed = p.version, time.Now()
}

// closeWithout closes the data plane after one of its devices, or a program of the kernel
// path, was removed.
func (s *session) closeWithout(gone error) {
	s.log.Warn("part of the data plane was removed, reopening it", logging.KeyWhy, gone)
	s.state.restarted(metrics.RestartDevice)
	if err := s.close(); err != nil {
		s.log.Debug("cannot close the data plane", logging.KeyError, err)
	}
}

// close closes the data plane, if one is open. When it returns nothing of it
// remains.
func (s *session) close() error {
	if dp := s.halt(); dp != nil {
		return dp.Close()
	}
	return nil
}

// halt ends forwarding and returns the data plane, which the caller has to close, or nil
// if none is open.
func (s *session) halt() dataPlane {
	dp := s.applied.plane
	if dp == nil {
		return nil
	}
	s.applied.plane = nil
	s.publish() // the data plane is not queried after this
	s.applied.stop()
	await(s.applied.ended)
	s.applied.ended = nil
	return dp
}

// keepRules installs the wanted rules and, on the first call, starts a goroutine
// that maintains them until ctx is done. If none are wanted, the rules that an
// earlier run or stock flannel left are removed. It fails only if masquerading is
// wanted and cannot be set up, since packets of pods that leave the network would
// then have a source to which no answer can be routed; forwarding may be allowed by
// policy without a rule. The rules stay when the session ends, so that pods keep
// their connectivity while the daemon is down.
func (s *session) keepRules(ctx context.Context, w rules.Wanted) error {
	a := &s.applied
	if a.rules != nil {
		if w.Equal(a.wanted) {
			return nil
		}
		err := a.rules.Set(w)
		if err == nil {
			a.wanted = w
		}
		return err
	}
	r, err := rules.New(rules.Config{Wanted: w, Resync: s.resync(), Logger: s.log})
	if err != nil {
		return err
	}
	s.waitFor(metrics.WaitRules, waitsForRules)
	if err := r.Apply(ctx); err != nil && w.Masquerade {
		return err
	}
	a.rules, a.wanted = r, w
	a.rulesEnd = start("keep firewall rules", func() error { return r.Run(ctx) })
	return nil
}

// awaitRules waits until the goroutine that maintains the rules has ended.
// The context of keepRules must be done.
func (s *session) awaitRules() {
	if s.applied.rulesEnd != nil {
		await(s.applied.rulesEnd)
	}
}

// writeSubnetEnv writes the subnet file, unless it is already up to date.
func (s *session) writeSubnetEnv(env lease.SubnetEnv) error {
	env.MTU = s.applied.plane.MTU()
	there, err := atomicfile.Read(s.options.subnetFile, 0, lease.MaxSubnetEnv)
	if err == nil && env == s.applied.env && bytes.Equal(there, env.Text()) {
		return nil
	}
	if err := env.Write(s.options.subnetFile); err != nil {
		return err
	}
	s.applied.env = env
	return nil
}
