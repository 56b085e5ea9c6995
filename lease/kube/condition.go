//go:build !nokube

package kube

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/twillnet/twill/lease/kube/layout"
)

// upMessage is the message of the condition NetworkUnavailable, as written by stock
// flannel beside layout.UpReason.
const upMessage = "Flannel is running on this node"

// conditionRest is the minimum time between two writes of the condition, in
// case another program keeps writing the opposite.
const conditionRest = 10 * time.Second

const opCondition = "set condition NetworkUnavailable of this node"

// Ready records that this node is ready for pods. It does not block; Watch writes
// the node's condition.
func (s *Store) Ready() {
	s.mu.Lock()
	s.ready = true
	s.mu.Unlock()
	s.notify()
}

// keepCondition maintains the condition NetworkUnavailable=False from the time that the
// node is ready until ctx is done. A condition that is already False for another
// reason, such as cloud routes or another network on top of this one, is kept.
func (s *Store) keepCondition(ctx context.Context) {
	if !s.access.o.Condition {
		return
	}
	changes, end := s.subscribe()
	defer end()
	for {
		var rest <-chan time.Time
		if e := s.unavailable(); e != nil {
			_ = s.setCondition(ctx, e) // a failure is recorded and retried
			rest = time.After(conditionRest)
		} else {
			s.unneeded(opCondition)
		}
		if rest != nil {
			select {
			case <-rest:
			case <-ctx.Done():
				return
			}
			continue
		}
		select {
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}

// unavailable returns this node if its condition has to be written.
func (s *Store) unavailable() *layout.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.own.seen
	if !s.ready || e == nil || s.own.gone || e.Unavailable == string(corev1.ConditionFalse) {
		return nil
	}
	return e
}

func (s *Store) setCondition(ctx context.Context, e *layout.Node) error {
	// Not later than the time from which the extras count, see Keys.Since.
	since := s.started
	if announced := s.keys.Since(e); !announced.IsZero() {
		since = announced
	}
	c := corev1.NodeCondition{
		Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: layout.UpReason, Message: upMessage,
		LastHeartbeatTime: metav1.Time{Time: since}, LastTransitionTime: metav1.Now(),
	}
	return s.patch(ctx, opCondition, e.Name,
		map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{c}}})
}
