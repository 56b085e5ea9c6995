package etcd

import (
	"errors"
	"time"
)

// errSilent is why etcd is away.
var errSilent = errors.New("etcd does not answer")

// Away returns since when etcd does not answer, and why; the zero time: it does, or
// was not asked.
func (s *Store) Away() (since time.Time, why error) {
	s.outage.mu.Lock()
	defer s.outage.mu.Unlock()
	if s.outage.since.IsZero() {
		return time.Time{}, nil
	}
	return s.outage.since, errSilent
}
