package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Options say what a session of the laboratory does.
type Options struct {
	Wires []Wire
	Paths []Path
	// Loads are what is put on every path and every wire. If nil, all are,
	// but for those that a path or a wire leaves out of its own accord.
	Loads    []Load
	MTU      int // of the wires, 1500 if zero
	Rounds   int
	Duration time.Duration // of each run
	Binaries Binaries
}

const (
	// setUpTime is about how long it takes to make a path and to take it down.
	setUpTime = 600 * time.Millisecond
	// A run of less than shortest says little, and one of more than longest
	// nothing that more rounds would not say better.
	shortest = 400 * time.Millisecond
	longest  = 5 * time.Second
)

// step is one run to be done.
type step struct {
	round int // from 1
	load  Load
	path  Path
}

// schedule is all runs on a wire, over those of the paths that stand, in their
// order. Each round begins with another path, so that none always runs in
// another's wake.
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

// wanted tells whether a load is put on a path and a wire.
func (o *Options) wanted(w Wire, p Path, l Load) bool {
	among := func(names []string) bool { return names == nil || slices.Contains(names, l.Name) }
	return o.Loads != nil || among(w.loads) && among(p.loads)
}

// Estimate is how long a session takes, if every path can be made.
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

// Fit sets Duration such that the session takes no longer than it may, as far
// as runs can be shortened.
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

// String says what will be done and how long it will take.
func (o *Options) String() string {
	return fmt.Sprintf("%d paths, %d loads, %d rounds of %v, wires %s: about %s",
		len(o.Paths), len(o.loads()), o.Rounds, o.Duration, strings.ReplaceAll(list(o.Wires, Wire.name), ",", ", "),
		minutes(o.Estimate()))
}

// minutes prints a time with no more digits than an estimate bears.
func minutes(d time.Duration) string {
	if d < 100*time.Second {
		return fmt.Sprintf("%.0f s", d.Seconds())
	}
	return fmt.Sprintf("%.0f min", d.Minutes())
}
