package keep

import "time"

const (
	// firstRest is the delay before an object may be restored again. It doubles
	// each time, up to longestRest.
	firstRest   = 50 * time.Millisecond
	longestRest = 5 * time.Second
	// calm is how long an object must stay in place before its delay is reset.
	calm = 3 * longestRest
)

// pace limits how often an object is restored that may be removed again.
type pace struct {
	last time.Time     // when it was last restored
	rest time.Duration // how long it is left alone after that
	said bool          // it has been logged that another program keeps removing it
}

// resting returns the time until which the object is left alone, or zero if it is not.
func (k *Keeper) resting(key any) (until time.Time) {
	if p, ok := k.paces[key]; ok {
		if until = p.last.Add(p.rest); until.After(time.Now()) {
			return until
		}
	}
	return time.Time{}
}

// put records that the object was restored.
func (k *Keeper) put(key any) {
	now := time.Now()
	p, ok := k.paces[key]
	if !ok || now.Sub(p.last) > calm {
		k.paces[key] = &pace{last: now, rest: firstRest}
		return
	}
	p.last, p.rest = now, min(2*p.rest, longestRest)
}

// forgetPaces resets the delays of objects that change with w, so that they are
// written immediately.
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
