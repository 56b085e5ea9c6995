package keep

import "time"

const (
	// firstRest is how long an object is left alone after it was put back, and
	// longestRest what that grows to, doubling each time.
	firstRest   = 50 * time.Millisecond
	longestRest = 5 * time.Second
	// calm is how long an object must stay before all is forgotten.
	calm = 3 * longestRest
)

// pace is that of an object which was put back and may be taken away again.
type pace struct {
	last time.Time     // that it was put back
	rest time.Duration // that it is left alone for since
	said bool          // that another program keeps taking it away
}

// resting returns until when the object is left alone; zero: it is not.
func (k *Keeper) resting(key any) (until time.Time) {
	if p, ok := k.paces[key]; ok {
		if until = p.last.Add(p.rest); until.After(time.Now()) {
			return until
		}
	}
	return time.Time{}
}

// put notes that the object was put back.
func (k *Keeper) put(key any) {
	now := time.Now()
	p, ok := k.paces[key]
	if !ok || now.Sub(p.last) > calm {
		k.paces[key] = &pace{last: now, rest: firstRest}
		return
	}
	p.last, p.rest = now, min(2*p.rest, longestRest)
}

// forgetPaces forgets what is known of objects that are to be others with w, so
// that they are there at once.
func (k *Keeper) forgetPaces(w *wanted) {
	if k.want == nil {
		return
	}
	differs := func(key any) bool {
		switch key := key.(type) {
		case fdbKey:
			return w.fdb[key] != k.want.fdb[key]
		case neighKey:
			return w.neighs[key] != k.want.neighs[key]
		case routeKey:
			return w.routes[key].Route != k.want.routes[key].Route
		}
		return false
	}
	for key := range k.paces {
		if differs(key) {
			delete(k.paces, key)
		}
	}
	for key := range k.said.failures {
		if differs(key) {
			delete(k.said.failures, key)
		}
	}
}
