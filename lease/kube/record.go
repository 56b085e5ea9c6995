//go:build !nokube

package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/twillnet/twill/internal/logging"
)

const (
	// lookEvery is the interval at which KeepEvents checks which events hold. An event
	// that does not hold twice in a row is transient and is not recorded.
	lookEvery = 5 * time.Second
	// repeatAfter is how often a warning that still holds is recorded again: by
	// default the API server forgets an Event after an hour (--event-ttl).
	repeatAfter = 30 * time.Minute
	// For each reason, recordBurst changes in a row are recorded, and then one per
	// recordPause.
	recordBurst = 5
	recordPause = 5 * time.Minute
	// failurePause is the pause after a failure to record an Event.
	failurePause = time.Minute
	// longestMessage is the largest size in bytes that the API allows for the note of an
	// Event in its newer form (events.k8s.io/v1).
	longestMessage = 1024
)

// KeepEvents records the events that holding returns as Events of this node's object,
// until ctx is done. There is one Event for each reason, which counts how often the
// reason began to hold, changed its message or, if it is a warning, was repeated. If the
// API server does not allow this, KeepEvents logs that once and retries occasionally.
func (s *Store) KeepEvents(ctx context.Context, holding func() []Event) {
	r := recorder{log: s.log, write: s.writeEvent, series: map[string]*series{}}
	r.run(ctx, holding)
}

// recorder is the state of KeepEvents.
type recorder struct {
	log    *slog.Logger
	write  func(context.Context, *series, Event) error
	series map[string]*series // by reason
	rests  time.Time          // nothing is written before this time, since a write failed
	denied bool               // the API server does not allow writing, which was logged
}

func (r *recorder) run(ctx context.Context, holding func() []Event) {
	looks := time.NewTicker(lookEvery)
	defer looks.Stop()
	for {
		select {
		case <-looks.C:
			r.look(ctx, holding())
		case <-ctx.Done():
			return
		}
	}
}

// series is the Event of one reason.
type series struct {
	held     bool      // at the last check
	recorded Event     // since it began to hold; the zero Event if it was not recorded yet
	last     time.Time // when it was last recorded
	pace     *rate.Limiter

	name  string // of the object; empty if there is none
	count int32
}

// look records those events that are new or have changed. now lists all that hold.
func (r *recorder) look(ctx context.Context, now []Event) {
	holds := map[string]bool{}
	for _, e := range now {
		holds[e.Reason] = true
		s := r.series[e.Reason]
		if s == nil {
			s = &series{pace: rate.NewLimiter(rate.Every(recordPause), recordBurst)}
			r.series[e.Reason] = s
		}
		if !s.held {
			s.held = true
			continue
		}
		if !s.due(e) || time.Now().Before(r.rests) || !s.pace.Allow() {
			continue
		}
		r.record(ctx, s, e)
	}
	for reason, s := range r.series {
		if !holds[reason] {
			s.held, s.recorded = false, Event{}
		}
	}
}

// due reports whether e, which holds, has to be recorded.
func (s *series) due(e Event) bool {
	return s.recorded != e || !e.Normal && time.Since(s.last) >= repeatAfter
}

// record writes e, or logs that this is not allowed.
func (r *recorder) record(ctx context.Context, s *series, e Event) {
	err := r.write(ctx, s, e)
	switch {
	case err == nil:
		s.recorded, s.last = e, time.Now()
		r.denied = false
	case ctx.Err() != nil:
	default:
		r.rests = time.Now().Add(failurePause)
		if apierrors.IsForbidden(err) && !r.denied {
			r.denied = true
			r.log.Warn("cannot record Kubernetes events, continuing without them", logging.KeyError, cause(err),
				logging.KeyRemedy, "allow this user to create and patch events (ClusterRole flannel)")
		}
	}
}

// writeEvent writes e to the object for its reason, and creates the object if there is
// none.
func (s *Store) writeEvent(ctx context.Context, of *series, e Event) error {
	node, err := s.nodeName(ctx)
	if err != nil {
		return err
	}
	c, err := s.access.get()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	o := object(node, e)
	if of.name != "" {
		o.Count = of.count + 1
		err := patchEvent(ctx, c, of.name, o)
		if !apierrors.IsNotFound(err) { // Events expire
			if err == nil {
				of.count = o.Count
			}
			return err
		}
		o.Count = 1
	}
	if err := c.Post().Namespace(o.Namespace).Resource("events").Body(o).Do(ctx).Into(o); err != nil {
		return err
	}
	of.name, of.count = o.Name, o.Count
	return nil
}

// object returns e as a new object. Like the kubelet's Events of Nodes, it is in the
// namespace default and has the node's name in place of its UID, so that "kubectl
// describe node" finds it.
func object(node string, e Event) *corev1.Event {
	now := metav1.Now()
	kind := corev1.EventTypeWarning
	if e.Normal {
		kind = corev1.EventTypeNormal
	}
	message := e.Message
	if len(message) > longestMessage {
		message = strings.ToValidUTF8(message[:longestMessage], "")
	}
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: node + ".", Namespace: metav1.NamespaceDefault},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
		Type:           kind, Reason: e.Reason, Message: message, Count: 1,
		FirstTimestamp: now, LastTimestamp: now,
		Source:              corev1.EventSource{Component: component, Host: node},
		ReportingController: component, ReportingInstance: node,
	}
}

// component is the name of this program in Events.
const component = "twilld"

// patchEvent changes the object with the given name to o. It sends only the fields that
// change between versions.
func patchEvent(ctx context.Context, c rest.Interface, name string, o *corev1.Event) error {
	body, err := json.Marshal(map[string]any{
		"count": o.Count, "lastTimestamp": o.LastTimestamp, "message": o.Message, "type": o.Type,
	})
	if err != nil {
		return fmt.Errorf("patch event %s: %w", name, err)
	}
	return c.Patch(types.StrategicMergePatchType).Namespace(o.Namespace).Resource("events").Name(name).Body(body).Do(ctx).Error()
}
