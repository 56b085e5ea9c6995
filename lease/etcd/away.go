package etcd

import (
	"errors"
	"time"
)

// errSilent is the reason returned by Away.
var errSilent = errors.New("etcd does not answer")

// Away returns when etcd stopped answering, and why. The time is zero if etcd
// answers, or was sent no request yet.
func (s *Store) Away() (since time.Time, why error) {
	s.outage.mu.Lock()
	defer s.outage.mu.Unlock()
	if s.outage.since.IsZero() {
		return time.Time{}, nil
	}
	return s.outage.since, errSilent
}
