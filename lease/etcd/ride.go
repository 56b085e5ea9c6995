package etcd

import (
	"cmp"
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

// ride sends one request, again and again while its error passes, until ctx is
// done. Each attempt has requestTimeout. The error is an *Error, and wraps that
// of ctx if ctx is why it was given up.
func (s *Store) ride(ctx context.Context, op string, passes func(error) bool, try func(context.Context) error) error {
	var (
		pause backoff
		last  error // of an attempt that ctx did not cut short
	)
	for {
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		err := try(attempt)
		cancel()
		if err != nil && ctx.Err() == nil || last == nil {
			last = err
		}
		switch {
		case err == nil:
			if away, told := s.silence.end(); told {
				s.log.Info("etcd answers again", logging.KeyOperation, op, logging.KeyAway, away)
			}
			return nil
		case ctx.Err() != nil:
			return s.fail(op, last, ctx.Err())
		case !passes(err):
			return s.fail(op, err, nil)
		}
		if s.silence.tell(time.Now()) {
			s.log.Warn("etcd does not answer as it should, trying again", logging.KeyOperation, op,
				logging.KeyError, cause(err), logging.KeyRemedy, s.remedy(err))
		}
		if pause.wait(ctx) != nil {
			return s.fail(op, err, ctx.Err())
		}
	}
}

// backoff is the pace of attempts at one thing: it doubles from shortest to
// longest, and each pause is a random part of that, so that nodes that fail
// together do not try again together. The zero backoff is ready.
type backoff struct {
	longest time.Duration // 0 means longestPause
	next    time.Duration
}

const (
	shortestPause = 50 * time.Millisecond
	longestPause  = 5 * time.Second
)

func (b *backoff) wait(ctx context.Context) error {
	b.next = min(max(2*b.next, shortestPause), cmp.Or(b.longest, longestPause))
	timer := time.NewTimer(b.next/2 + rand.N(b.next/2))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// silence bounds what the log says while etcd is away, for all requests of a
// store together: one line at once, then one each tellEvery.
type silence struct {
	mu    sync.Mutex
	since time.Time // zero: etcd is not known to be away
	told  time.Time
}

const tellEvery = 30 * time.Second

// tell says whether it is time for a line.
func (s *silence) tell(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		s.since = now
	}
	if !s.told.IsZero() && now.Sub(s.told) < tellEvery {
		return false
	}
	s.told = now
	return true
}

// end returns how long etcd was away, and whether the log had said so. The
// pace of the log outlives it: an etcd that comes and goes does not fill it.
func (s *silence) end() (away time.Duration, told bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.IsZero() {
		return 0, false
	}
	away, told = time.Since(s.since).Round(time.Millisecond), !s.told.Before(s.since)
	s.since = time.Time{}
	return away, told
}
