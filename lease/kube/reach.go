//go:build !nokube

package kube

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// reach records whether the API serves this node. It is guarded by the mutex of
// the Store.
type reach struct {
	away time.Time // since when it does not, or not fully; zero if it does
	// down is the error of the last request, if the API did not answer it or does not
	// accept the credentials; nil if the API answers.
	down *Error
	// forbidden holds the operations that the API server does not allow this node, with
	// the error of each. The fault persists even if other operations succeed.
	forbidden map[string]*Error
}

// why returns why the API does not serve this node, or nil if it does. A refusal, which
// only an operator can resolve, takes precedence over an outage.
func (r *reach) why() *Error {
	if len(r.forbidden) == 0 || denied(r.down) {
		return r.down
	}
	return r.forbidden[slices.Min(slices.Collect(maps.Keys(r.forbidden)))]
}

// refusal returns why the API refuses this node, or nil.
func (r *reach) refusal() error {
	if e := r.why(); denied(e) {
		return e
	}
	return nil
}

// denied reports whether e, which may be nil, reports a refusal.
func denied(e *Error) bool { return e != nil && errors.Is(e, lease.ErrDenied) }

// failed records the error of op and reports whether the fault is of a different kind
// from those already known.
func (r *reach) failed(op string, e *Error) (isNew bool) {
	if r.away.IsZero() {
		r.away = time.Now()
	}
	if apierrors.IsForbidden(e) {
		if r.forbidden == nil {
			r.forbidden = map[string]*Error{}
		}
		isNew = r.forbidden[op] == nil
		r.forbidden[op], r.down = e, nil
		return isNew
	}
	isNew = r.down == nil || denied(r.down) != denied(e)
	r.down = e
	return isNew
}

// Away returns when the API stopped answering or began to refuse this node, and
// why. The time is zero if the API answers.
func (s *Store) Away() (since time.Time, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reach.away.IsZero() {
		return time.Time{}, nil
	}
	return s.reach.away, s.reach.why()
}

// Watched reports whether all nodes have been read once and the API has answered since,
// so that the client is watching them without a gap.
func (s *Store) Watched() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.synced && s.reach.away.IsZero()
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
	if denied(e) {
		s.access.question()
	}
	s.mu.Lock()
	isNew := s.reach.failed(op, e)
	s.mu.Unlock()
	if isNew {
		s.log.Warn("Kubernetes API does not serve this node, known leases stay in force", logging.KeyOperation, e.Op,
			logging.KeyError, e.Err, logging.KeyRemedy, e.Remedy)
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

// answers records that the API has answered a request for op.
func (s *Store) answers(op string) { s.resolve(op, true) }

// unneeded records that this node has no reason to try op again if it is forbidden.
func (s *Store) unneeded(op string) { s.resolve(op, false) }

// resolve ends the fault that op is forbidden and, if the API has answered, an outage.
// It logs the end of either.
func (s *Store) resolve(op string, answered bool) {
	s.mu.Lock()
	r := &s.reach
	forbidden := r.forbidden[op] != nil
	delete(r.forbidden, op)
	down := answered && r.down != nil
	if down {
		r.down = nil
	}
	away := r.away
	if r.why() == nil {
		r.away = time.Time{}
	}
	s.mu.Unlock()
	if forbidden || down {
		s.log.Info("Kubernetes API answers again", logging.KeyOperation, op, logging.KeyAway, time.Since(away).Round(time.Millisecond))
		s.notify()
	}
}
