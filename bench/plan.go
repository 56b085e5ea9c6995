package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options configure a session of the laboratory.
type Options struct {
	Wires []Wire
	Paths []Path
	// Loads are put on every path and every wire. nil means all loads, except those
	// that a path or a wire excludes.
	Loads    []Load
	MTU      int // of the wires, 1500 if zero
	Rounds   int
	Duration time.Duration // of each run
	Binaries Binaries
}

const (
	// setUpTime is about how long it takes to set a path up and tear it down.
	setUpTime = 600 * time.Millisecond
	// A run shorter than shortest is not meaningful, and making one longer than
	// longest gains nothing over more rounds.
	shortest = 400 * time.Millisecond
	longest  = 5 * time.Second
)

// step is one planned run.
type step struct {
	round int // from 1
	load  Load
	path  Path
}

// schedule returns all runs on a wire, in order, for those paths that are set up. Each
// round begins with another path, so that no path always runs directly after the same
// other one.
func (o *Options) schedule(w Wire, standing []Path) []step {
	var steps []step
	for round := range o.Rounds {
		for _, load := range o.loads() {
			for i := range standing {
				path := standing[(i+round)%len(standing)]
				if o.wanted(w, path, load) {
					steps = append(steps, step{round + 1, load, path})
				}
			}
		}
	}
	return steps
}

func (o *Options) loads() []Load {
	if o.Loads == nil {
		return Loads
	}
	return o.Loads
}

// wanted reports whether a load is put on a path and a wire.
func (o *Options) wanted(w Wire, p Path, l Load) bool {
	among := func(names []string) bool { return names == nil || slices.Contains(names, l.Name) }
	return o.Loads != nil || among(w.loads) && among(p.loads)
}

// Estimate is how long a session takes if every path can be set up.
func (o *Options) Estimate() time.Duration {
	var total time.Duration
	for _, w := range o.Wires {
		total += time.Duration(len(o.Paths)) * setUpTime
		for _, step := range o.schedule(w, o.Paths) {
			total += step.load.took(o.Duration)
		}
	}
	return total
}

// Fit sets Duration so that the session takes at most the given time, as far as runs
// can be shortened.
func (o *Options) Fit(may time.Duration) {
	o.Duration = 0
	fixed := o.Estimate()
	o.Duration = time.Second
	perSecond := o.Estimate() - fixed
	o.Duration = longest
	if perSecond > 0 {
		d := time.Duration(float64(may-fixed) / perSecond.Seconds())
		o.Duration = min(max(d, shortest), longest).Truncate(10 * time.Millisecond)
	}
}

// String describes the planned runs and how long they will take.
func (o *Options) String() string {
	return fmt.Sprintf("%d paths, %d loads, %d rounds of %v, wires %s: about %s",
		len(o.Paths), len(o.loads()), o.Rounds, o.Duration, strings.ReplaceAll(list(o.Wires, Wire.name), ",", ", "),
		minutes(o.Estimate()))
}

// minutes prints a duration with the precision of an estimate.
func minutes(d time.Duration) string {
	if d < 100*time.Second {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}
