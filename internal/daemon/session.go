package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// retryAfter is how long what could not be brought about rests before it is
// tried again. Most of it is tried before that, when an interface changes.
const retryAfter = time.Second

// session is the daemon since it has joined the network. It brings the data
// plane and the subnet file after what the interface, the lease and the store
// are now, and tells when pods can talk.
//
// All of it runs on one goroutine, which may be in a network namespace that the
// others are not in.
type session struct {
	*daemon
	node   node // as it should be
	holder *holder

	engine    *engine   // nil: no data plane is open
	opened    node      // what engine was opened with
	fallen    bool      // it has opened with fewer ways than it was to have
	again     bool      // it wants to be told the leases again, with the next look
	looked    time.Time // when it was told them last
	logged    time.Time // when that was logged last
	firewall  firewall
	holes     []netip.Prefix  // subnets with a blackhole route
	written   lease.SubnetEnv // what the subnet file says; zero: nothing yet
	due       *time.Timer     // runs while leases have come that engine has not been told
	retry     *time.Timer     // runs while something could not be brought about
	none      string          // why no interface would do the last time; empty: one did
	noLease   string          // why the node has no lease as it wants it; empty: it has
	told      string          // what tell has told last
	reloading bool            // the service manager waits for the end of a change

	// What the store told last, which is not all in force: see restart.
	set    lease.Set
	latest *lease.Config
	peers  []lease.Lease // in force: the last set of this node's network
	stale  bool          // peers are older than set

	restart   string // what a restart would change; empty: nothing
	refused   string // the last error of the store; empty once it is mended
	badConfig string // refused, if the network configuration is what is wrong
	unfit     bool   // it is sound, but this node has not the backend
}

// engine is an open data plane that forwards.
type engine struct {
	carrier
	stop  context.CancelFunc
	ended <-chan error // gives what Run has ended with
}

// missing is what keeps pods from talking, and why it is not there.
type missing struct {
	what string
	err  error
}

func (m *missing) Error() string { return fmt.Sprintf("%s: %v", m.what, m.err) }
func (m *missing) Unwrap() error { return m.err }

// settle brings about what can be, and tells the outcome.
func (s *session) settle(ctx context.Context) {
	err := s.reconcile(ctx)
	if ctx.Err() != nil {
		return // what has failed has failed because of the end
	}
	if err != nil {
		s.retry.Reset(retryAfter)
	}
	s.tell(err)
}

// reconcile compares what is with what should be, and makes it so. It may be
// called at any time; where all is right it changes nothing. The error is a
// *missing, and leaves what could be done before it done.
func (s *session) reconcile(ctx context.Context) error {
	if err := s.followLink(); err != nil {
		return &missing{"an interface to the other nodes", err}
	}
	if !s.upToDate() {
		if err := s.reopen(ctx); err != nil {
			return &missing{"the data plane", err}
		}
	} else if s.again && time.Since(s.looked) >= s.firewall.resync {
		s.setLeases()
	}
	// Before the subnet file, on whose word pods are started.
	if err := s.firewall.keep(ctx, s.wantedRules()); err != nil {
		return &missing{"the firewall rules", err}
	}
	if err := s.dig(); err != nil {
		return &missing{"the blackhole routes", err}
	}
	if err := s.writeSubnetEnv(); err != nil {
		return &missing{"the subnet file", err}
	}
	return nil
}

// setLeases tells the open data plane the leases. What it cannot follow it logs
// itself.
func (s *session) setLeases() {
	s.logLeases()
	s.again, s.looked = s.engine.SetLeases(s.inForce()), time.Now()
}

// logLeases logs that leases have changed, unless they did a second ago, as they do
// in a large network in trouble.
func (s *session) logLeases() {
	if s.stale && time.Since(s.logged) >= time.Second {
		s.logged = time.Now()
		s.log.Info("leases applied", logging.KeyLeases, s.set.Len())
	}
}

// between is the least time between two tellings of leases, of which a large
// network in trouble may have hundreds a second: each is the whole set.
const between = 25 * time.Millisecond

// setLeasesSoon tells the leases at once if they were not told just before, and
// in a moment else.
func (s *session) setLeasesSoon() {
	if wait := between - time.Since(s.looked); wait > 0 {
		s.due.Reset(wait)
	} else {
		s.setLeases()
	}
}

// followLink finds out what has become of the interface. One that cannot be
// used any more is replaced by the one that would be chosen now; if there is
// none, the data plane stays as it is, since the old one may come back.
func (s *session) followLink() error {
	was := s.node.link
	now, err := s.stay(was, s.underlayOptions(s.node.config))
	if err != nil {
		var none error
		if now, none = s.chooseLink(s.node.config); none != nil {
			s.noteNone(none)
			return err // what to mend; the other is what else there is
		}
	}
	s.none = ""
	if now.Equal(was) {
		return nil
	}
	s.log.Info("interface has changed", logging.KeyWas, was, logging.KeyNow, now, logging.KeyWhy, now.Why)
	s.node.link = now
	s.state.change(s.node.tell)
	s.riseAgain()
	if now.PublicIP != was.PublicIP || now.PublicIPv6 != was.PublicIPv6 {
		s.announce("the other nodes do not know yet that this one is at " + public(now))
	}
	return nil
}

// riseAgain chooses the ways anew after one has failed: with another interface, or
// another MTU, it may do.
func (s *session) riseAgain() {
	if !s.fallen {
		return
	}
	c, err := s.node.settings.Choose(s.probes)
	if err != nil || c.Equal(s.node.choice) {
		return // perhaps the next time
	}
	s.node.choice, s.fallen = c, false
	s.tellChoice(&s.node)
	s.announce("the other nodes do not know yet which backends this one has")
}

// noteNone logs why no interface will do, once for each reason: which interfaces
// the host has besides may change all the time.
func (s *session) noteNone(err error) {
	why := err.Error()
	var none *underlay.NoneError
	if errors.As(err, &none) {
		why = none.Tried.Error()
	}
	if why != s.none {
		s.none = why
		s.log.Warn("no other interface will do", logging.KeyError, err)
	}
}

// upToDate says whether the data plane is open and is that of the interface, the
// subnets and the backends that the node has.
func (s *session) upToDate() bool {
	return s.engine != nil && s.opened.opensLike(&s.node)
}

// reopen closes the data plane, if there is one, and opens it as it should be.
// Packets of pods are lost meanwhile; the pods' connections go on.
func (s *session) reopen(ctx context.Context) error {
	s.state.waitFor("the data plane")
	if s.engine != nil {
		s.reloading = true
		s.tellManager(reloadingNow())
		if err := s.close(); err != nil {
			s.log.Warn("data plane not closed", logging.KeyError, err)
		}
	}
	as := s.node
	if s.reacquires { // the store has, or is about to have, what the node tells
		as.own.Attrs = as.told
	} else if l, ok := s.set.Get(as.own.Key()); ok { // which may be of the same change as the rest
		as.own.Attrs = l.Attrs
	}
	dp, err := s.open(as)
	if err != nil {
		return err
	}
	if ctx.Err() != nil { // opening takes no notice of it
		return errors.Join(ctx.Err(), dp.Close())
	}
	s.fallBack(dp.Choice())
	s.logLeases()
	s.again, s.looked = dp.SetLeases(s.inForce()), time.Now()
	s.state.attach(dp)
	ctx, cancel := context.WithCancel(ctx)
	s.engine = &engine{dp, cancel, start("data plane", func() error { return dp.Run(ctx) })}
	s.opened = s.node
	return nil
}

// fallBack tells the other nodes with which ways the data plane has opened, if
// they are not those that it was to have.
func (s *session) fallBack(c backend.Choice) {
	if c.Equal(s.node.choice) {
		return
	}
	s.node.choice, s.fallen = c, true
	s.tellChoice(&s.node)
	s.announce("the other nodes do not know yet which backends this one has")
}

// announce has the lease say what the node is now, if that is new. Until it does,
// why keeps the node from being ready.
func (s *session) announce(why string) {
	s.state.change(s.node.tell)
	attrs, err := s.node.attrs()
	if err != nil {
		s.noLease = fmt.Sprintf("%s: %v", why, err)
		return
	}
	if attrs.Equal(s.node.told) {
		return
	}
	s.node.told, s.noLease = attrs, why
	s.holder.move(attrs)
}

// replaceDevice makes the device anew that somebody has deleted.
func (s *session) replaceDevice(ctx context.Context, gone error) {
	s.log.Warn("device was deleted, making it anew", logging.KeyWhy, gone)
	if err := s.close(); err != nil {
		s.log.Debug("data plane not closed", logging.KeyError, err)
	}
	s.settle(ctx)
}

// close ends the data plane, if one is open. When it returns nothing of it is
// left.
func (s *session) close() error {
	if s.engine == nil {
		return nil
	}
	s.state.attach(nil)
	s.engine.stop()
	await(s.engine.ended)
	err := s.engine.Close()
	s.engine = nil
	return err
}

// ended gives what the open data plane has ended with.
func (s *session) ended() <-chan error {
	if s.engine == nil {
		return nil
	}
	return s.engine.ended
}

func (s *session) writeSubnetEnv() error {
	env := lease.SubnetEnv{
		Network:     s.node.config.IPv4.Network,
		Subnet:      s.node.own.Subnet,
		IPv6Network: s.node.config.IPv6.Network,
		IPv6Subnet:  s.node.own.IPv6Subnet,
		MTU:         s.engine.MTU(),
		IPMasq:      s.options.ipMasq,
	}
	if there, err := os.ReadFile(s.options.subnetFile); err == nil && env == s.written && bytes.Equal(there, env.Text()) {
		return nil
	}
	if err := env.Write(s.options.subnetFile); err != nil {
		return err
	}
	s.written = env
	return nil
}

// hold takes over what the holder says of the lease.
func (s *session) hold(h held) {
	if h.err != nil {
		s.noLease = h.err.Error()
		return
	}
	if h.moved == s.holder.moved { // or else the node has moved on meanwhile
		s.noLease = ""
	}
	if was := s.node.own; was.Key() != h.lease.Key() {
		s.adoptConfig()
		s.log.Warn("subnet has changed", logging.KeyWas, was.Subnets(), logging.KeyNow, h.lease.Subnets(),
			logging.KeyRemedy, "make the pods of this node anew, those that run have addresses of the old one")
	}
	s.node.own = h.lease
	s.checkRestart()
	s.state.change(s.node.tell)
}

// adoptConfig takes over the network configuration as the store has it now: that
// is where another subnet comes from, and the data plane is opened anew for it
// anyway.
func (s *session) adoptConfig() {
	was := s.node.config
	if s.latest.Equal(was) || s.plan(&s.node, s.latest) != nil {
		return // what the node cannot do, adoptBackend has told
	}
	s.log.Info("network configuration taken over", logging.KeyWas, was.Networks(), logging.KeyNow, s.latest.Networks())
	s.tellChoice(&s.node)
	s.announce("the other nodes do not know yet which backends this one has")
	s.stale = true
}

// adoptBackend takes over the backend of the latest network configuration, if the
// networks have stayed: the data plane is opened anew for it then. The error says
// what keeps this node from it; it goes on as it was.
func (s *session) adoptBackend() error {
	if s.latest.Equal(s.node.config) || !s.sameNetworks() {
		return nil
	}
	to := s.node
	if err := s.plan(&to, s.latest); err != nil {
		return err
	}
	was := s.node
	if s.node = to; to.opensLike(&was) {
		return nil
	}
	s.log.Info("backend has changed", logging.KeyWas, describe(was.config.Backend), logging.KeyNow, describe(to.config.Backend))
	s.tellChoice(&s.node)
	s.announce("the other nodes do not know yet that the backend has changed")
	return nil
}

// tell tells whoever waits for it whether pods can talk; err is what reconcile
// has returned. Only what is new is told and logged.
func (s *session) tell(err error) {
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case s.noLease != "":
		why = "a lease: " + s.noLease
	case s.badConfig != "":
		why = "a sound network configuration: " + s.badConfig
	}
	s.state.waitFor(why)
	if s.told == why && !s.reloading {
		return
	}
	s.told = why
	state := statusLine(why)
	// A change is over for the service manager whatever has come of it.
	if why == "" || s.reloading {
		state = notifyReady + "\n" + state
	}
	if why == "" {
		s.log.Info("ready", logging.KeyPath, s.options.subnetFile, logging.KeyMTU, s.written.MTU)
	} else {
		s.log.Warn("not ready", logging.KeyWhy, why)
	}
	s.tellManager(state)
	s.reloading = false
}

// public returns the addresses that the others are to know.
func public(l underlay.Interface) string {
	var as []string
	for _, a := range []netip.Addr{l.PublicIP, l.PublicIPv6} {
		if a.IsValid() {
			as = append(as, a.String())
		}
	}
	return strings.Join(as, " and ")
}
