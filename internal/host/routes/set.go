package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
)

// passes bounds how often the kernel is looked at again where there are several
// routes to one Dst, before what there is is taken for a fault.
const passes = 3

// Set makes the kernel have the routes of want, and removes those that this
// table or an earlier run has made and that are not in want. What is right
// already is not written again. Routes that cannot be had stay wanted: Run puts
// them in when they can be. They are told by an *Error; the rest is done.
//
// The first Set reads the kernel's routes; others do if Run does not run.
func (t *Table) Set(want []Route) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	look := !t.followed || t.want == nil
	failures := t.take(want)
	o, err := t.apply(look)
	if err != nil {
		return err
	}
	t.told.remember(o.failures)
	return failed(append(failures, o.failures...))
}

// take makes want what is wanted, and returns what of it makes no sense.
func (t *Table) take(want []Route) (failures []Failure) {
	before := t.want
	t.want = make(map[netip.Prefix]Route, len(want))
	t.devs = make(map[int]bool)
	for _, r := range want {
		r = r.normal()
		var err error
		if other, twice := t.want[r.Dst]; !t.inside(r.Dst) {
			err = errors.New("it is outside the networks of the cluster")
		} else if twice && other != r {
			err = fmt.Errorf("another route to it is wanted: %s", other)
		}
		if err != nil {
			failures = append(failures, Failure{r, fmt.Errorf("set route %s: %w", r, err)})
			continue
		}
		t.want[r.Dst] = r
		t.devs[r.Dev] = true
	}
	for dst, r := range before {
		if t.want[dst] != r {
			delete(t.fights, dst)
			delete(t.told.faults, dst)
		}
	}
	return failures
}

// outcome is what came of an apply.
type outcome struct {
	put      []Route   // written
	failures []Failure // not to be had, or not to be removed
	due      time.Time // when a route may be put back that rests; zero: none does
}

// apply makes the kernel have what is wanted. With look it reads first what
// there is; without, it relies on have.
func (t *Table) apply(look bool) (o outcome, err error) {
	clear(t.devices)
	for range passes {
		var found map[netip.Prefix][]foundRoute
		if look {
			if found, err = t.read(); err != nil {
				return o, err
			}
			t.compare(found)
		}
		o.failures, o.due = nil, time.Time{}
		if !t.do(t.steps(found, &o), &o) {
			break
		}
		look = true
	}
	return o, nil
}

// compare brings have up to date with what was found.
func (t *Table) compare(found map[netip.Prefix][]foundRoute) {
	for dst, h := range t.have {
		if !slices.ContainsFunc(found[dst], func(f foundRoute) bool {
			return f.plain && f.Route == h.Route && (f.protocol != unix.RTPROT_BOOT) == h.foreign
		}) {
			delete(t.have, dst)
		}
	}
	for dst, w := range t.want {
		for _, f := range found[dst] {
			if f.plain && f.Route == w {
				t.have[dst] = held{w, f.protocol != unix.RTPROT_BOOT}
				break
			}
		}
	}
}

// step is one request to the kernel.
type step struct {
	request nlbatch.Request
	route   Route
	kind    stepKind
	look    bool // again, afterwards
}

type stepKind int

const (
	stepPut   stepKind = iota // a route that is wanted
	stepClear                 // one beside it
	stepDrop                  // one that is not wanted any more
)

// steps returns what there is to do, ordered by Dst: first what is wanted.
func (t *Table) steps(found map[netip.Prefix][]foundRoute, o *outcome) []step {
	var steps []step
	now := time.Now()
	for dst, w := range t.want {
		right := t.have[dst].Route == w
		if right && len(found[dst]) <= 1 {
			continue
		}
		if until := t.resting(dst, now); !until.IsZero() {
			o.due = earlier(o.due, until)
			continue
		}
		if own := t.connected(dst, found); !right && own > 0 {
			o.failures = append(o.failures, Failure{w, fmt.Errorf(
				"set route %s: interface %s has that subnet itself: make the pods on it anew, with addresses of this node's lease", t.words(w), t.device(own).name)})
			continue
		}
		if !right {
			steps = append(steps, step{nlbatch.RouteReplace(w.batched()), w, stepPut, len(found[dst]) > 1})
			continue
		}
		others := 0
		for _, f := range found[dst] {
			if f.plain && f.Route != w {
				steps = append(steps, step{f.del(f.protocol), f.Route, stepClear, true})
				others++
			}
		}
		if others > 0 {
			// The kernel deletes the first that matches. If the other has no
			// gateway, that may have been ours.
			steps = append(steps, step{nlbatch.RouteReplace(w.batched()), w, stepPut, true})
		}
	}
	for dst, h := range t.have {
		switch _, wanted := t.want[dst]; {
		case wanted:
		case h.foreign:
			delete(t.have, dst)
		default:
			steps = append(steps, step{h.del(unix.RTPROT_BOOT), h.Route, stepDrop, false})
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int {
		if (a.kind == stepDrop) != (b.kind == stepDrop) {
			return int(a.kind) - int(b.kind) // the last of the kinds
		}
		return a.route.Dst.Compare(b.route.Dst)
	})
	return steps
}

// connected returns the number of the device that has the subnet dst itself, as a
// bridge of pods has: the kernel has made a route for its address. 0: none has. To
// put another in its place would cut off whoever is there, and the kernel would
// not make it again. found is nil if nobody has looked.
func (t *Table) connected(dst netip.Prefix, found map[netip.Prefix][]foundRoute) (dev int) {
	if found != nil {
		for _, f := range found[dst] {
			if f.protocol == unix.RTPROT_KERNEL {
				return f.Dev
			}
		}
		return 0
	}
	if _, ok := t.have[dst]; ok {
		return 0 // in its place
	}
	// One of the first may be the interface's own, of which table local has routes.
	for a, tries := dst.Addr().Next(), 0; tries < 3 && dst.Contains(a); a, tries = a.Next(), tries+1 {
		routes, err := t.nl.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if err != nil || len(routes) != 1 || routes[0].Protocol != unix.RTPROT_KERNEL {
			return 0
		}
		if f, ok := t.look(routes[0]); ok && f.Dst == dst {
			return f.Dev
		}
	}
	return 0
}

// do takes the steps, and says whether to look again at what there is.
func (t *Table) do(steps []step, o *outcome) (again bool) {
	requests := make([]nlbatch.Request, len(steps))
	for i, s := range steps {
		requests[i] = s.request
	}
	errs, _ := t.conn.Do(requests) // each has its error
	t.overcome(steps, errs)
	for i, s := range steps {
		again = again || s.look
		err := errs[i]
		switch {
		case s.kind == stepClear: // whether it is gone shows when one looks again
		case s.kind == stepDrop && (err == nil || errors.Is(err, unix.ESRCH)):
			delete(t.have, s.route.Dst)
		case s.kind == stepDrop:
			o.failures = append(o.failures, Failure{s.route, fmt.Errorf("delete route %s: %w", t.words(s.route), err)})
		case err == nil:
			t.have[s.route.Dst] = held{Route: s.route}
			t.putBack(s.route.Dst)
			o.put = append(o.put, s.route)
		default:
			// It is there for IPv4, behind another.
			again = again || errors.Is(err, unix.EEXIST)
			if errors.Is(err, nlbatch.ErrUnanswered) {
				delete(t.have, s.route.Dst) // it is not known what is there
			}
			delete(t.fights, s.route.Dst) // the kernel took it
			o.failures = append(o.failures, Failure{s.route, t.explain(s.route, err)})
		}
	}
	return again
}
