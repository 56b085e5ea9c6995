package routes

import (
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

const (
	// firstRest is how long a route is left alone after it was put back, and
	// longestRest what that grows to, doubling each time.
	firstRest   = 50 * time.Millisecond
	longestRest = 5 * time.Second
	// calm is how long a route must stay before all is forgotten.
	calm = 3 * longestRest
	// silence is for how long the same routes put back are not logged again.
	silence = time.Minute
)

// fight is of a route that was put back and may be taken away again.
type fight struct {
	last time.Time     // that it was put back
	rest time.Duration // that it is left alone for since
	told bool          // that it is a fight
}

// resting returns until when the route to dst is left alone; zero: it is not.
func (t *Table) resting(dst netip.Prefix, now time.Time) (until time.Time) {
	if f, ok := t.fights[dst]; ok {
		if until = f.last.Add(f.rest); until.After(now) {
			return until
		}
	}
	return time.Time{}
}

// putBack notes that the route to dst was put in while Run runs. That it was put
// in for the first time does no harm: it rests a moment.
func (t *Table) putBack(dst netip.Prefix) {
	if !t.followed {
		return
	}
	now := time.Now()
	f, ok := t.fights[dst]
	if !ok || now.Sub(f.last) > calm {
		t.fights[dst] = &fight{last: now, rest: firstRest}
		return
	}
	f.last, f.rest = now, min(2*f.rest, longestRest)
}

// told is what has been logged, so that it is not logged again.
type told struct {
	put    string // the first route that was put back
	at     time.Time
	faults map[netip.Prefix]string // why a route cannot be had, as logged or returned
	read   string                  // why the routes cannot be read
}

// remember replaces what is known of faults, and returns those that are new.
func (t *told) remember(failures []Failure) (fresh []Failure) {
	before := t.faults
	t.faults = make(map[netip.Prefix]string, len(failures))
	for _, f := range failures {
		text := f.Err.Error()
		if before[f.Route.Dst] != text {
			fresh = append(fresh, f)
		}
		t.faults[f.Route.Dst] = text
	}
	return fresh
}

// report logs what Run has found and done, each thing once.
func (t *Table) report(o outcome, err error) {
	log := t.cfg.Logger
	if err != nil {
		if text := err.Error(); text != t.told.read {
			t.told.read = text
			log.Warn("routes cannot be read, they are not kept", logging.KeyError, err)
		}
		return
	}
	t.told.read = ""
	now := time.Now()
	if len(o.put) > 0 {
		first := t.words(o.put[0])
		if first != t.told.put || now.Sub(t.told.at) > silence {
			t.told.put, t.told.at = first, now
			log.Info("routes were gone or changed, put back", logging.KeyRoutes, len(o.put), logging.KeyRoute, first)
		}
	}
	if fresh := t.told.remember(o.failures); len(fresh) > 0 {
		log.Warn("routes cannot be had", logging.KeyRoutes, len(fresh), logging.KeyError, fresh[0].Err)
	}
	for _, r := range o.put {
		if f := t.fights[r.Dst]; f != nil && f.rest >= time.Second && !f.told {
			f.told = true
			log.Warn("somebody changes a route again and again, it is put back now and then",
				logging.KeyRoute, t.words(r), logging.KeyRemedy, "find out who with 'ip monitor route'")
		}
	}
	for dst, f := range t.fights {
		if now.Sub(f.last) > calm {
			delete(t.fights, dst)
		}
	}
}
