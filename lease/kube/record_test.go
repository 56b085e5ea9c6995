//go:build !nokube

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// recordsFor lets time pass for a recorder of what holding returns at each time since
// the start, and returns what it writes: "5s Reason: message". fail decides which
// writes fail; it may be nil.
func recordsFor(t *testing.T, d time.Duration, holding func(time.Duration) []Event, fail func(time.Duration) error) (written []string, log *testkit.Log) {
	log = new(testkit.Log)
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := recorder{log: slog.New(slog.NewTextHandler(log, nil)), series: map[string]*series{}}
		r.write = func(_ context.Context, _ *series, e Event) error {
			if fail != nil {
				if err := fail(time.Since(start)); err != nil {
					return err
				}
			}
			written = append(written, fmt.Sprintf("%v %s: %s", time.Since(start), e.Reason, e.Message))
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		r.run(ctx, func() []Event { return holding(time.Since(start)) })
	})
	return written, log
}

func TestEventIsRecordedWhenItHoldsAndWhenItsMessageChanges(t *testing.T) {
	got, _ := recordsFor(t, time.Minute, func(now time.Duration) []Event {
		all := []Event{{Reason: "Ready", Message: "yes", Normal: true}}
		switch {
		case now < 20*time.Second:
			all = append(all, Event{Reason: "Config", Message: "a typo"})
		case now < 40*time.Second:
			all = append(all, Event{Reason: "Config", Message: "another typo"})
		case now == 45*time.Second: // passes by itself
			all = append(all, Event{Reason: "Lease", Message: "not yet"})
		}
		return all
	}, nil)
	want := []string{"10s Ready: yes", "10s Config: a typo", "20s Config: another typo"}
	if !slices.Equal(got, want) {
		t.Errorf("recorded are %q, want %q", got, want)
	}
}

func TestWarningThatHoldsOutlivesItsEvent(t *testing.T) {
	got, _ := recordsFor(t, 65*time.Minute, func(time.Duration) []Event {
		return []Event{{Reason: "Ready", Message: "yes", Normal: true}, {Reason: "Conflict", Message: "two"}}
	}, nil)
	want := []string{"10s Ready: yes", "10s Conflict: two", "30m10s Conflict: two", "1h0m10s Conflict: two"}
	if !slices.Equal(got, want) {
		t.Errorf("recorded are %q, want %q", got, want)
	}
}

// A node that is ready every other moment, and says something else each time, is a
// burst and then an Event every few minutes, which has what holds by then.
func TestEventsOfAnUnsteadyNodeAreBounded(t *testing.T) {
	n := 0
	got, _ := recordsFor(t, time.Hour, func(now time.Duration) []Event {
		n++
		if now%(20*time.Second) < 10*time.Second {
			return []Event{{Reason: "Ready", Message: "yes", Normal: true}}
		}
		return []Event{{Reason: "NotReady", Message: fmt.Sprint(n)}}
	}, nil)
	if most := 2 * (recordBurst + 12); len(got) > most || len(got) < most/2 {
		t.Errorf("%d Events in an hour, want at most %d, and not much fewer:\n%s", len(got), most, strings.Join(got, "\n"))
	}
}

func TestMissingRightToRecordEventsIsLoggedOnceAndTriedAgain(t *testing.T) {
	tries := 0
	got, log := recordsFor(t, 10*time.Minute, func(time.Duration) []Event { return []Event{{Reason: "Conflict", Message: "two"}} },
		func(now time.Duration) error {
			tries++
			if now < 5*time.Minute {
				return apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "", errors.New("no RBAC policy matched"))
			}
			return nil
		})
	if len(got) != 1 || tries > 7 {
		t.Errorf("%d Events recorded after %d attempts in five minutes without the right", len(got), tries)
	}
	if lines := log.Lines("cannot record Kubernetes events"); len(lines) != 1 {
		t.Errorf("%d lines of the log, want 1:\n%s", len(lines), log)
	}
}
