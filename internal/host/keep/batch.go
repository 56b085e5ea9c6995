package keep

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/twillnet/twill/internal/host/nlbatch"
	"golang.org/x/sys/unix"
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

// written records that an object was written. what describes it, as a string or
// a Stringer. If another program had removed or changed the object, the next
// write of it is delayed; see put.
func (b *batch) written(key, what any) {
	if _, failed := b.said.failures[key]; b.restoring && !failed {
		b.put(key)
		b.o.restore(b.kindWords(what))
	}
}

// sortSteps orders steps by their keys, since they come from unordered maps.
func sortSteps(steps []step) {
	slices.SortStableFunc(steps, func(a, b step) int { return compareKeys(a.key, b.key) })
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

// putEntries writes FDB entries, then neighbours. A neighbour is written only
// once the FDB entry of its MAC exists.
func (b *batch) putEntries() {
	k := b.Keeper
	for key, dst := range k.want.fdb {
		k.have.ours[key] = true
		if k.have.fdb[key] == dst || b.rests(key) {
			continue
		}
		f := nlbatch.FDB{Dev: key.dev, MAC: key.mac, Dst: dst}
		b.add(step{key: key, op: "write FDB entry", object: f, request: nlbatch.FDBReplace(f), done: func() { k.have.fdb[key] = dst }})
	}
	b.do()
	for key, mac := range k.want.neighs {
		if k.have.neighs[key] == mac || b.rests(key) {
			continue
		}
		if f := (fdbKey{key.dev, mac}); k.want.fdb[f] != k.have.fdb[f] {
			continue
		}
		n := nlbatch.Neigh{Dev: key.dev, IP: key.ip, MAC: mac}
		b.add(step{key: key, op: "write neighbour", object: n, request: nlbatch.NeighReplace(n), done: func() { k.have.neighs[key] = mac }, remedy: neighRemedy(key.ip)})
	}
	b.do()
}

// dropEntries deletes our entries that are not wanted, FDB entries first: if it
// is interrupted, the remaining neighbours still identify the FDB entries as
// ours.
func (b *batch) dropEntries() {
	k := b.Keeper
	for key := range k.have.ours {
		if _, wanted := k.want.fdb[key]; wanted {
			continue
		}
		dst, there := k.have.fdb[key]
		if !there {
			delete(k.have.ours, key)
			continue
		}
		f := nlbatch.FDB{Dev: key.dev, MAC: key.mac, Dst: dst}
		b.add(step{key: key, op: "delete FDB entry", object: f, request: nlbatch.FDBDel(f), gone: unix.ENOENT, done: func() { delete(k.have.fdb, key) }})
	}
	for key, mac := range k.have.neighs {
		if _, wanted := k.want.neighs[key]; wanted || !k.oursByForm(key.ip) {
			continue
		}
		n := nlbatch.Neigh{Dev: key.dev, IP: key.ip, MAC: mac}
		b.add(step{key: key, op: "delete neighbour", object: n, request: nlbatch.NeighDel(n), gone: unix.ENOENT, done: func() { delete(k.have.neighs, key) }})
	}
	b.do()
}

// neighRemedy returns a function that suggests a remedy for an error of the
// kernel. Before Linux 5.0, permanent neighbours counted towards the limit of
// the neighbour table (commit 58956317c8de), which is 1,024 by default.
func neighRemedy(ip netip.Addr) func(error) string {
	return func(err error) string {
		if !errors.Is(err, unix.ENOBUFS) {
			return ""
		}
		version := 6
		if ip.Is4() {
			version = 4
		}
		return fmt.Sprintf("; the neighbour table may be full: raise net.ipv%d.neigh.default.gc_thresh3", version)
	}
}

// ready reports whether the neighbour for the gateway of r exists, if one is
// wanted.
func (k *Keeper) ready(r nlbatch.Route) bool {
	if !r.OnLink {
		return true
	}
	key := neighKey{r.Dev, r.Via}
	mac, wanted := k.want.neighs[key]
	return !wanted || k.have.neighs[key] == mac
}
