package keep

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// batch collects requests to the kernel and their outcome during one apply. The
// Keeper's mu is held.
type batch struct {
	*Keeper
	restoring bool
	o         *outcome
	steps     []step
	now       time.Time
	rested    kinds // kinds with objects that are wrong but must not be written yet
	lost      error // the error of the failed socket
}

func (k *Keeper) begin(restoring bool, o *outcome) *batch {
	clear(k.linkStates)
	return &batch{Keeper: k, restoring: restoring, o: o, now: time.Now()}
}

// step is one request.
type step struct {
	key     any // of the object
	op      string
	object  fmt.Stringer
	request nlbatch.Request
	gone    error // the error that means the object is already gone; nil for writes
	done    func()
	remedy  func(error) string
	after   func(error) // handles the answer; nil: handled as usual
}

func (b *batch) add(s step) { b.steps = append(b.steps, s) }

// rests reports whether the object must not be written yet.
func (b *batch) rests(key any) bool {
	until := b.resting(key)
	if until.IsZero() {
		return false
	}
	b.o.wait(until)
	switch key.(type) {
	case linkKey:
		b.rested |= links
	case routeKey:
		b.rested |= routes
	}
	return true
}

// do sends the requests of all steps added so far and handles the answers.
func (b *batch) do() {
	steps := b.steps
	b.steps = nil
	if len(steps) == 0 || b.lost != nil {
		return
	}
	sortSteps(steps)
	requests := make([]nlbatch.Request, len(steps))
	for i, s := range steps {
		requests[i] = s.request
	}
	errs, err := b.send(requests)
	if err != nil {
		b.lost = err
		b.dirty = everything // some requests were not answered
	}
	b.retryOnLink(steps, errs)
	for i, s := range steps {
		b.answered(s, errs[i])
	}
}

// answered handles the answer to a step.
func (b *batch) answered(s step, err error) {
	if s.after != nil {
		s.after(err)
		return
	}
	switch {
	case err == nil:
		s.done()
		if s.gone == nil {
			b.written(s.key, s.object)
		}
	case s.gone != nil && errors.Is(err, s.gone):
		s.done()
	default:
		if errors.Is(err, nlbatch.ErrUnanswered) {
			b.dirty = everything // the request may have been carried out
		}
		remedy := ""
		if s.remedy != nil {
			remedy = s.remedy(err)
		}
		b.o.fail(s.key, fmt.Errorf("%s %s: %w%s", s.op, b.words(s.object), err, remedy))
	}
}

// written records that an object was written; what describes it, as a string or
// a Stringer. If another program had removed or changed the object, the next
// write of it is delayed; see put.
func (b *batch) written(key, what any) {
	if _, failed := b.said.failures[key]; b.restoring && !failed {
		b.put(key)
		b.o.restore(b.kindWords(what))
	}
}

// compareKeys orders keys of the same type, and entries before routes.
func compareKeys(a, b any) int {
	switch a := a.(type) {
	case fdbKey:
		if b, ok := b.(fdbKey); ok {
			return cmp.Or(a.dev-b.dev, bytes.Compare(a.mac[:], b.mac[:]))
		}
		return -1
	case neighKey:
		if b, ok := b.(neighKey); ok {
			return cmp.Or(a.dev-b.dev, a.ip.Compare(b.ip))
		}
		return 1
	case routeKey:
		if b, ok := b.(routeKey); ok {
			return cmp.Or(a.dst.Compare(b.dst), cmp.Compare(a.metric, b.metric))
		}
	}
	return 0
}
