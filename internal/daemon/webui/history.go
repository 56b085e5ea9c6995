package webui

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twillnet/twill/metrics"
)

const (
	// interval is the time between two points of the history.
	interval = 5 * time.Second
	// points is how many points there are: ten minutes.
	points = 120
)

// history is the traffic of each backend over the last minutes. It is safe for concurrent
// use.
type history struct {
	mu    sync.Mutex
	at    time.Time // of the last point
	last  []metrics.BackendTraffic
	lines []series
}

// series are the rates of a backend, in bits per second, oldest first; at most points.
type series struct {
	backend string
	tx, rx  []float64
}

// add adds a point. If a counter has decreased, it belongs to a new data plane, and the
// rate is 0.
func (h *history) add(now time.Time, traffic []metrics.BackendTraffic) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seconds := now.Sub(h.at).Seconds()
	first := h.at.IsZero()
	was := h.last
	h.at, h.last = now, slices.Clone(traffic)
	if first || seconds <= 0 {
		return
	}
	// A backend that is gone keeps its line until all of its points are zero.
	for i := range h.lines {
		h.lines[i].push(0, 0)
	}
	for _, t := range traffic {
		i := slices.IndexFunc(h.lines, func(s series) bool { return s.backend == t.Backend })
		if i < 0 {
			i = len(h.lines)
			s := series{backend: t.Backend}
			s.push(0, 0)
			h.lines = append(h.lines, s)
		}
		j := slices.IndexFunc(was, func(w metrics.BackendTraffic) bool { return w.Backend == t.Backend })
		if j < 0 {
			continue
		}
		s := &h.lines[i]
		s.tx[len(s.tx)-1] = rate(was[j].TX.Bytes, t.TX.Bytes, seconds)
		s.rx[len(s.rx)-1] = rate(was[j].RX.Bytes, t.RX.Bytes, seconds)
	}
	h.lines = slices.DeleteFunc(h.lines, func(s series) bool {
		gone := !slices.ContainsFunc(traffic, func(t metrics.BackendTraffic) bool { return t.Backend == s.backend })
		return gone && s.most() == 0
	})
	slices.SortFunc(h.lines, func(a, b series) int { return strings.Compare(a.backend, b.backend) })
}

func rate(was, is uint64, seconds float64) float64 {
	if is < was {
		return 0
	}
	return 8 * float64(is-was) / seconds
}

func (s *series) push(tx, rx float64) {
	s.tx, s.rx = append(s.tx, tx), append(s.rx, rx)
	if n := len(s.tx) - points; n > 0 {
		s.tx, s.rx = slices.Delete(s.tx, 0, n), slices.Delete(s.rx, 0, n)
	}
}

// most returns the highest rate.
func (s *series) most() float64 { return max(slices.Max(s.tx), slices.Max(s.rx)) }

// series returns a copy of the history.
func (h *history) series() []series {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Clone(h.lines)
	for i := range all {
		all[i].tx, all[i].rx = slices.Clone(all[i].tx), slices.Clone(all[i].rx)
	}
	return all
}
