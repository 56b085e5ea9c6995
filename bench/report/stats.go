package report

import "slices"

// Stat summarizes a figure over rounds.
type Stat struct {
	Median, Min, Max float64
	Rounds           int
}

// stat summarizes values; it returns false if there are none.
func stat(values []float64) (Stat, bool) {
	if len(values) == 0 {
		return Stat{}, false
	}
	sorted := slices.Sorted(slices.Values(values))
	mid := len(sorted) / 2
	median := sorted[mid]
	if len(sorted)%2 == 0 {
		median = (sorted[mid-1] + sorted[mid]) / 2
	}
	return Stat{median, sorted[0], sorted[len(sorted)-1], len(sorted)}, true
}

// figures returns the figures of a path under a load, by round.
func (w *Wire) figures(path, load string, m Metric) map[int]float64 {
	values := make(map[int]float64)
	for _, run := range w.Runs {
		if run.Path == path && run.Load == load {
			if v, ok := run.Figures[m.Key]; ok {
				values[run.Round] = v
			}
		}
	}
	return values
}

// Figure summarizes a figure of a path under a load over all rounds; it returns false
// if there is none.
func (w *Wire) Figure(path, load string, m Metric) (Stat, bool) {
	var values []float64
	for _, v := range w.figures(path, load, m) {
		values = append(values, v)
	}
	return stat(values)
}

// Ratio returns a path's ratios to another path, taken round by round.
func (w *Wire) Ratio(path, to, load string, m Metric) (Stat, bool) {
	base := w.figures(to, load, m)
	var ratios []float64
	for round, v := range w.figures(path, load, m) {
		if b := base[round]; b != 0 {
			ratios = append(ratios, v/b)
		}
	}
	return stat(ratios)
}

// failed reports whether a path was put under a load and failed.
func (w *Wire) failed(path, load string) bool {
	return slices.ContainsFunc(w.Runs, func(r Run) bool {
		return r.Path == path && r.Load == load && r.Error != ""
	})
}

// KeepFinishedRounds drops the runs of a round that was interrupted, unless it
// is the first.
func (w *Wire) KeepFinishedRounds() {
	if w.Rounds > 0 {
		w.Runs = slices.DeleteFunc(w.Runs, func(r Run) bool { return r.Round > w.Rounds })
	}
}
