//go:build !noetcd

package etcd

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

// retry sends one request, and repeats it while its error is retryable, until ctx is
// done. Each attempt is limited to requestTimeout. The error is an *Error; it wraps
// that of ctx if ctx ended the attempts.
func (s *Store) retry(ctx context.Context, op string, retryable func(error) bool, try func(context.Context) error) error {
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
			if away, logged := s.outage.end(); logged {
				s.log.Info("etcd answers again", logging.KeyOperation, op, logging.KeyAway, away)
			}
			return nil
		case ctx.Err() != nil:
			return s.fail(op, last, ctx.Err())
		case !retryable(err):
			return s.fail(op, err, nil)
		}
		if s.outage.note(time.Now()) {
			s.log.Warn("request to etcd failed, retrying", logging.KeyOperation, op,
				logging.KeyError, cause(err), logging.KeyRemedy, s.remedy(err))
		}
		if pause.wait(ctx) != nil {
			return s.fail(op, err, ctx.Err())
		}
	}
}

// backoff is the pause between attempts: it doubles from shortestPause to longest,
// and each pause is a random part of that, so that nodes that fail at the same time
// do not retry at the same time. The zero backoff is ready to use.
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

// outage limits the log while etcd does not answer, for all requests of a store
// together: one line immediately, then one every logInterval.
type outage struct {
	mu     sync.Mutex
	since  time.Time // zero if etcd answers, as far as is known
	logged time.Time // the last line; it outlives an outage, so that an etcd that comes and goes does not fill the log
}

const logInterval = 30 * time.Second

// note records that etcd does not answer, and reports whether to log that.
func (o *outage) note(now time.Time) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		o.since = now
	}
	if !o.logged.IsZero() && now.Sub(o.logged) < logInterval {
		return false
	}
	o.logged = now
	return true
}

// end records that etcd answers. It returns the length of the outage, and whether
// it was logged.
func (o *outage) end() (away time.Duration, logged bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return 0, false
	}
	away, logged = time.Since(o.since).Round(time.Millisecond), !o.logged.Before(o.since)
	o.since = time.Time{}
	return away, logged
}

// Watched reports whether changes arrive as they happen: a watch is established, and
// etcd answers.
func (s *Store) Watched() bool {
	since, _ := s.Away()
	return s.watched.Load() && since.IsZero()
}

// errSilent is the reason returned by Away.
var errSilent = errors.New("etcd does not answer")

// Away returns when etcd stopped answering, and why. The time is zero if etcd
// answers, or if no request has been sent yet.
func (s *Store) Away() (since time.Time, why error) {
	s.outage.mu.Lock()
	defer s.outage.mu.Unlock()
	if s.outage.since.IsZero() {
		return time.Time{}, nil
	}
	return s.outage.since, errSilent
}
