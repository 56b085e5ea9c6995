//go:build !nokube

package kube

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// reach records whether the API can be reached. It is guarded by the mutex of
// the Store.
type reach struct {
	away   time.Time // since when it does not answer; zero if it does
	why    *Error    // of the last request that failed
	logged time.Time
	// forbidden is the operation that the API server does not allow this node, empty
	// if it allows all: that others succeed meanwhile does not end the fault.
	forbidden string
}

// logEvery limits the log messages during an outage of the API.
const logEvery = 30 * time.Second

// Away returns when the API stopped answering or began to refuse this node, and
// why. The time is zero if the API answers.
func (s *Store) Away() (since time.Time, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reach.away.IsZero() {
		return time.Time{}, nil
	}
	return s.reach.away, s.reach.why
}

// outcome records the result of a request, logs changes, and returns the *Error
// for the caller.
func (s *Store) outcome(ctx context.Context, op string, err error) error {
	if err == nil || answered(err) {
		s.answers(op)
		if err == nil {
			return nil
		}
		return s.fail(op, err)
	}
	e := s.fail(op, err)
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), e) // the caller gave up; the API may be healthy
	}
	denied := errors.Is(e, lease.ErrDenied)
	if denied {
		s.access.question()
	}
	now := time.Now()
	s.mu.Lock()
	r := &s.reach
	isNew := r.why == nil || denied != errors.Is(r.why, lease.ErrDenied)
	if r.away.IsZero() {
		r.away = now
	}
	log := isNew || now.Sub(r.logged) >= logEvery
	if log {
		r.logged = now
	}
	r.why, r.forbidden = e, ""
	if apierrors.IsForbidden(err) {
		r.forbidden = op
	}
	s.mu.Unlock()
	if log {
		s.log.Warn("Kubernetes API does not serve this node, going on with what is known", logging.KeyOperation, e.Op,
			logging.KeyError, e.Err, logging.KeyRemedy, e.Remedy)
	}
	if isNew {
		s.notify()
	}
	return e
}

// answered reports whether the API answered a request and refused it because of
// its content, not because of the credentials.
func answered(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) ||
		apierrors.IsConflict(err) || apierrors.IsResourceExpired(err) || apierrors.IsGone(err)
}

// unneeded records that this node has no reason to try op again, should it be
// forbidden.
func (s *Store) unneeded(op string) {
	s.mu.Lock()
	forbidden := s.reach.forbidden == op
	s.mu.Unlock()
	if forbidden {
		s.answers(op)
	}
}

// answers records that the API has answered a request for op.
func (s *Store) answers(op string) {
	s.mu.Lock()
	was := s.reach
	if was.forbidden != "" && was.forbidden != op {
		s.mu.Unlock()
		return
	}
	s.reach = reach{}
	s.mu.Unlock()
	if !was.away.IsZero() {
		s.log.Info("Kubernetes API answers again", logging.KeyOperation, op, logging.KeyAway, time.Since(was.away).Round(time.Millisecond))
		s.notify()
	}
}
