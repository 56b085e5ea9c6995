package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// applied is what has been done of a plan, in the form in which it was wanted.
type applied struct {
	attrs lease.Attrs // the holder's: announced, or about to be

	plane dataPlane // nil: none is open
	node  node      // that plane was opened for
	stop  context.CancelFunc
	ended <-chan error // gives what the plane's Run has ended with

	peers  uint      // version of those that the plane has
	again  bool      // they are worth passing again, after some seconds
	passed time.Time // when they were passed

	rules    *rules.Rules // nil: none are kept yet
	rulesEnd <-chan error // of what keeps them
	wanted   rules.Wanted // by rules
	env      lease.SubnetEnv
}

// reconcile plans and does what differs from what is applied. It may be called at
// any time; where all is as planned it changes nothing. The error is a *missing,
// and what does not depend on it is done.
func (s *session) reconcile(ctx context.Context) error {
	noLink := s.followLink()
	if noLink != nil {
		noLink = &missing{waitsForLink, noLink}
	}
	s.takePeers()
	w, err := s.plan()
	if err != nil {
		return cmp.Or(noLink, error(&missing{"a lease", err}))
	}
	if s.applied.plane == nil || !s.applied.node.opensLike(&w.node) {
		if noLink != nil {
			return noLink // it may be the old one that comes back
		}
		if w, err = s.reopen(ctx, w); err != nil {
			return &missing{"the data plane", err}
		}
	} else if w.peers.version != s.applied.peers || s.applied.again && time.Since(s.applied.passed) >= s.resync() {
		s.pass(w.peers)
	}
	// Before the subnet file, on whose word pods are started.
	if err := s.keepRules(ctx, w.rules); err != nil {
		return &missing{"the firewall rules", err}
	}
	if err := s.writeSubnetEnv(w.env); err != nil {
		return &missing{"the subnet file", err}
	}
	return noLink
}

// plan makes the plan, and announces what it has in the lease if that is new.
func (s *session) plan() (want, error) {
	err := s.readMACs()
	var w want
	if err == nil {
		w, err = plan(&s.in)
	}
	if err != nil {
		return w, fmt.Errorf("what to announce is not known: %w", err)
	}
	if !w.attrs.Equal(s.applied.attrs) {
		s.applied.attrs = w.attrs
		s.holder.move(w.attrs)
	}
	return w, nil
}

// readMACs reads the addresses of the VXLAN devices that are there, once for each
// data plane.
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

// reopen closes the data plane, if there is one, and opens that of w. Packets of
// pods are lost meanwhile; the pods' connections go on. It returns the plan for the
// backends that could be opened.
func (s *session) reopen(ctx context.Context, w want) (want, error) {
	s.waitFor("the data plane")
	if s.applied.plane != nil {
		s.reloading = true
		s.notifyManager(reloadingNow())
		s.reclaimDescriptors()
		if err := s.close(); err != nil {
			s.log.Warn("data plane not closed", logging.KeyError, err)
		}
	}
	dp, err := s.open(w.node)
	if err != nil {
		return w, err
	}
	if ctx.Err() != nil { // opening does not look at it
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
	s.macsOf = node{} // the devices may have other addresses now
	s.applied.plane, s.applied.node = dp, w.node
	s.pass(w.peers)
	s.keepDescriptors()
	s.begin()
	ctx, s.applied.stop = context.WithCancel(ctx)
	s.applied.ended = start("data plane", func() error { return dp.Run(ctx) })
	return w, nil
}

// pass gives the open data plane its peers. What it cannot do it logs itself.
func (s *session) pass(p peers) {
	if p.version != s.applied.peers {
		s.reportLeases()
	}
	s.applied.again = s.applied.plane.SetLeases(p.leases)
	s.applied.peers, s.applied.passed = p.version, time.Now()
}

// closeWithout closes the data plane of which a device was deleted.
func (s *session) closeWithout(gone error) {
	s.log.Warn("device was deleted, opening the data plane again", logging.KeyWhy, gone)
	if err := s.close(); err != nil {
		s.log.Debug("data plane not closed", logging.KeyError, err)
	}
}

// close ends the data plane, if one is open. When it returns nothing of it is
// left.
func (s *session) close() error {
	dp := s.applied.plane
	if dp == nil {
		return nil
	}
	s.applied.plane = nil
	s.publish() // it is not asked any more after this
	s.applied.stop()
	await(s.applied.ended)
	s.applied.ended = nil
	return dp.Close()
}

// keepRules makes the rules that are wanted and, the first time, has them kept
// until ctx is done. Where none are wanted, what an earlier run or stock flannel
// has left is removed. It fails only if packets of pods that leave the network
// would have no sender to answer to: that they are forwarded may well be the policy
// without a rule. The rules stay when the session ends, so that pods go on talking
// while the daemon is down.
func (s *session) keepRules(ctx context.Context, w rules.Wanted) error {
	a := &s.applied
	if a.rules != nil {
		if w == a.wanted {
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
	if err := r.Apply(ctx); err != nil && w.Masquerade {
		return err
	}
	a.rules, a.wanted = r, w
	a.rulesEnd = start("keep firewall rules", func() error { return r.Run(ctx) })
	return nil
}

// waitForRules waits until nothing keeps the rules any more. The context of
// keepRules is done.
func (s *session) waitForRules() {
	if s.applied.rulesEnd != nil {
		await(s.applied.rulesEnd)
	}
}

// writeSubnetEnv writes the subnet file, unless it says the same already.
func (s *session) writeSubnetEnv(env lease.SubnetEnv) error {
	env.MTU = s.applied.plane.MTU()
	there, err := os.ReadFile(s.options.subnetFile)
	if err == nil && env == s.applied.env && bytes.Equal(there, env.Text()) {
		return nil
	}
	if err := env.Write(s.options.subnetFile); err != nil {
		return err
	}
	s.applied.env = env
	return nil
}
