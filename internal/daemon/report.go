package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// sourceHealth is the health of the store's updates.
type sourceHealth struct {
	refused error // what the store last refused, such as a configuration; nil once it was corrected
	denied  error // why the store refuses this node; nil if it does not
	unfit   error // why this node cannot follow the latest configuration; nil if it can
	since   time.Time
	updated time.Time // when the last good update arrived; zero if none did
}

// problem returns the current error.
func (h *sourceHealth) problem() error {
	return cmp.Or(h.refused, h.denied, h.unfit)
}

// config returns the error of the network configuration.
func (h *sourceHealth) config() error {
	if configFault(h.refused) {
		return h.refused
	}
	return h.unfit
}

// shown holds the text last logged for each kind of message, so that each is
// logged once.
type shown map[string]string

// changed records text and reports whether it differs from the previous one.
func (s shown) changed(kind, text string) bool {
	was, ok := s[kind]
	s[kind] = text
	return !ok || was != text
}

// report publishes whether the node is ready; err is the result of reconcile.
func (s *session) report(err error) {
	if restart := s.restart(); s.shown.changed("restart", restart) && restart != "" {
		s.log.Warn("restart needed", logging.KeyWhy, restart,
			logging.KeyRemedy, "restart twilld to apply the change; until then it uses the previous configuration")
	}
	reason, why := s.problem(err)
	s.waitFor(reason, why)
	if why == "" && s.ready != nil {
		s.ready()
	}
	if !s.shown.changed("problem", why) && !s.reloading {
		return
	}
	state := statusLine(why)
	// For the service manager a reload is complete regardless of its outcome.
	if why == "" || s.reloading {
		state = notifyReady + "\n" + state
	}
	if why == "" {
		s.log.Info("ready", logging.KeyPath, s.options.subnetFile, logging.KeyMTU, s.applied.env.MTU)
	} else {
		s.log.Warn("not ready", logging.KeyWhy, why)
	}
	s.notifyManager(state)
	s.reloading = false
}

// problem returns what keeps the node from being ready, or "".
func (s *session) problem(err error) (metrics.Wait, string) {
	if m := (*missing)(nil); errors.As(err, &m) {
		return m.reason, m.Error()
	}
	if why := s.leaseProblem(); why != "" {
		return metrics.WaitLease, "a lease: " + why
	}
	if err := s.source.config(); err != nil {
		return metrics.WaitConfig, waitsForConfig + err.Error()
	}
	if err := s.source.denied; err != nil {
		return metrics.WaitStore, "access to the leases: " + err.Error()
	}
	return metrics.Ready, ""
}

const waitsForConfig = "a valid network configuration: "

// leaseProblem returns why the lease is not as wanted, or "".
func (s *session) leaseProblem() string {
	var why []string
	if s.confirmed != s.holder.moved {
		why = append(why, unknownToPeers(s.in.own.Attrs, s.applied.attrs))
	}
	// Otherwise the announcement has changed since the attempt.
	if s.kept.err != nil && s.kept.moved == s.holder.moved {
		why = append(why, s.kept.err.Error())
	}
	return strings.Join(why, ": ")
}

// unknownToPeers describes the part of an announcement that the peers do not
// know yet.
func unknownToPeers(known, announced lease.Attrs) string {
	if known.PublicIP == announced.PublicIP && known.PublicIPv6 == announced.PublicIPv6 {
		return "the other nodes do not yet know this node's backends"
	}
	var public []string
	for _, a := range announced.Addrs() {
		public = append(public, a.String())
	}
	return "the other nodes do not yet know that this node is at " + strings.Join(public, " and ")
}

// restart returns what a restart would change, or "".
func (s *session) restart() string {
	if s.source.updated.IsZero() {
		return ""
	}
	var why []string
	if !s.in.sameNetworks() {
		why = append(why, fmt.Sprintf("the network is now %s, but the device and its routes belong to %s", s.in.latest.Networks(), s.in.config.Networks()))
	}
	if gone := s.in.ownGone(); gone != "" && s.leaseProblem() == "" && !s.in.writable {
		why = append(why, gone)
	}
	return strings.Join(why, "; ")
}

// reportSource logs an error in the store's updates once, and when it is
// resolved.
func (s *session) reportSource() {
	problem := s.source.problem()
	text := ""
	if problem != nil {
		text = problem.Error()
	}
	if !s.shown.changed("source", text) {
		return
	}
	s.source.since = time.Now()
	if problem != nil {
		s.log.Warn("lease source rejected, the last valid version stays in force", logging.KeyError, problem)
	} else {
		s.log.Info("lease source is valid again")
	}
}

// maxConflicts is how many conflicts of leases are described. The total is logged as
// well.
const maxConflicts = 5

// reportConflicts logs the leases that are left out because they overlap others,
// once for each set of them, and when none are left.
func (s *session) reportConflicts() {
	text := s.describeConflicts()
	switch {
	case !s.shown.changed("conflicts", text):
	case text != "":
		s.log.Warn("leases overlap, the wider subnet is used", logging.KeyConflicts, len(s.conflicts), logging.KeyWhy, text,
			logging.KeyRemedy, "delete the wrong lease; \"twill leases\" lists all")
	default:
		s.log.Info("leases no longer overlap")
	}
}

func (s *session) describeConflicts() string {
	var all []string
	for _, c := range s.conflicts[:min(len(s.conflicts), maxConflicts)] {
		all = append(all, c.Error())
	}
	return strings.Join(all, "; ")
}

// reportBackends logs the node's backends, and why they were chosen.
func (s *session) reportBackends() {
	settings, choice, err := s.in.backends()
	if err == nil && settings.Carries() && s.shown.changed("backends", fmt.Sprint(choice.Kinds, choice.Why)) {
		s.log.Info("backends chosen", logging.KeyBackends, choice.Kinds, logging.KeyWhy, choice.Why)
	}
}

// reportLeases logs that leases have changed, unless they also changed less
// than a second ago, as in a large unstable network.
func (s *session) reportLeases() {
	if time.Since(s.applied.passed) >= time.Second {
		s.log.Info("leases applied", logging.KeyLeases, s.in.leases.Len())
	}
}

// waitFor publishes what the node is waiting for; "" means ready.
func (s *session) waitFor(reason metrics.Wait, what string) {
	s.reason, s.waiting = reason, what
	s.publish()
}

// publish derives the status, which other goroutines read.
func (s *session) publish() {
	s.state.publish(s.document(), s.applied.plane, s.applied.rules)
}

// document returns the session's part of the status document.
func (s *session) document() status.Document {
	d := status.Document{
		Waiting: s.waiting, WaitingReason: s.reason.String(), Restart: s.restart(), AddressConflict: s.addressConflict(),
		Source: status.Source{
			Leases: s.in.leases.Len(), Updated: s.source.updated,
			Conflicts: len(s.conflicts), ConflictsWhy: s.describeConflicts(),
		},
	}
	if err := s.source.problem(); err != nil {
		d.Source.LastError, d.Source.LastErrorAt = err.Error(), s.source.since
	}
	if s.in.config == nil {
		return d
	}
	settings, choice, _ := s.in.backends() // an error is reported by the source
	d.Network, d.Backend, d.BackendWhy = s.in.config.Networks(), settings.Type, choice.Why
	for _, w := range choice.Kinds {
		d.Backends = append(d.Backends, string(w))
	}
	if l := s.in.link; l.Name != "" {
		d.Underlay = &status.Underlay{Name: l.Name, IPv4: l.IPv4, IPv6: l.IPv6, MTU: l.MTU, Why: l.Why}
	}
	if own := s.in.own; len(own.Subnets()) > 0 {
		d.Lease = &status.Lease{
			Subnet: own.Subnet, IPv6Subnet: own.IPv6Subnet,
			PublicIP: own.PublicIP, PublicIPv6: own.PublicIPv6,
			Expiration: own.Expiration,
		}
	}
	return d
}

// notifyManager sends a state to the service manager. A failure does not end the
// daemon; the manager reports missing notifications itself.
func (s *session) notifyManager(state string) {
	if s.takeover != nil {
		return // the manager ignores this process until the running one has named it
	}
	if err := notify(s.notifySocket, state); err != nil {
		s.log.Warn("service manager not notified", logging.KeyError, err)
	}
}
