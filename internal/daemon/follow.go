package daemon

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// apply follows one update of the store. Another network takes a restart, which
// is asked for in the log and in the status. Until then the rest goes on.
func (s *session) apply(u lease.Update) {
	switch {
	case errors.Is(u.Err, lease.ErrLost):
		s.holder.nudge()
		return
	case u.Err != nil:
		s.refuse(u.Err)
		return
	}
	// Leases that change say nothing of a configuration that is broken or that
	// this node has not the backend for. A file is one text.
	mended := s.refused != "" && (u.Config != nil || s.badConfig == "" || !s.unfit && !s.reacquires)
	if mended {
		s.refused, s.badConfig = "", ""
	}
	if u.Config != nil {
		s.latest = u.Config
		err := s.adoptBackend()
		if s.unfit = err != nil; s.unfit {
			s.refuse(err)
		}
	}
	if mended && s.refused == "" {
		s.log.Info("lease source good again")
	}
	changed := s.set.Apply(u)
	if (changed || u.Config != nil) && s.sameNetworks() {
		s.stale = true
		if s.upToDate() { // or else another is opened with them
			s.setLeasesSoon()
		}
	}
	if s.noLease != "" || s.reacquires && s.ownGone() != "" {
		s.holder.nudge()
	}
	s.checkRestart()
	s.state.change(func(d *status.Document) {
		d.Source.Leases = s.set.Len()
		d.Source.Updated = time.Now()
		if s.refused == "" {
			d.Source.LastError, d.Source.LastErrorAt = "", time.Time{}
		}
	})
}

// sameNetworks says whether the networks of the configuration are those of the node.
// Leases of others would take the peers of these away, while device and routes are
// still of these.
func (s *session) sameNetworks() bool {
	return slices.Equal(s.latest.Networks(), s.node.config.Networks())
}

// inForce returns the leases of this node's network.
func (s *session) inForce() []lease.Lease {
	if s.stale && s.sameNetworks() {
		s.peers, s.stale = s.set.Leases(), false
	}
	return s.peers
}

// refuse remembers an error of the store, and logs it unless it is the one
// that it told last.
func (s *session) refuse(err error) {
	if err.Error() == s.refused {
		return
	}
	s.refused, s.badConfig = err.Error(), ""
	if configFault(err) {
		s.badConfig = s.refused
	}
	s.log.Warn("lease source refused, the last good version stays in force", logging.KeyError, err)
	s.state.change(func(d *status.Document) {
		d.Source.LastError, d.Source.LastErrorAt = s.refused, time.Now()
	})
}

// checkRestart compares what the node was opened with to what the store says
// now.
func (s *session) checkRestart() {
	var why []string
	if !s.sameNetworks() {
		why = append(why, fmt.Sprintf("the network is now %s, the device and its routes are those of %s", s.latest.Networks(), s.node.config.Networks()))
	}
	if gone := s.ownGone(); gone != "" && s.noLease == "" && !s.reacquires {
		why = append(why, gone)
	}
	restart := strings.Join(why, "; ")
	if restart != "" && restart != s.restart {
		s.log.Warn("restart needed", logging.KeyWhy, restart,
			logging.KeyRemedy, "restart twilld to take it over; until then it goes on as it was started")
	}
	s.restart = restart
	s.state.change(func(d *status.Document) { d.Restart = restart })
}

// ownGone says what has become of this node's lease if the store has given it
// away.
func (s *session) ownGone() string {
	own := s.node.own
	switch is, ok := s.set.Get(own.Key()); {
	case !ok:
		return fmt.Sprintf("this node's lease %s is gone", own.Key())
	case is.PublicIP != own.PublicIP || is.PublicIPv6 != own.PublicIPv6:
		return fmt.Sprintf("this node's lease %s is now that of another public IP", own.Key())
	}
	return ""
}

func describe(b lease.Backend) string {
	if b.Raw == nil {
		return b.Type
	}
	return string(b.Raw)
}
