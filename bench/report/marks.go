package report

import (
	"fmt"
	"strings"
)

// mark is a target that twill has to meet.
type mark struct {
	what string
	wire string
	path string
	to   string // the path that the figure is divided by; empty: the figure itself counts
	load string // empty: the load that shows the largest figure counts
	m    Metric
	want float64
	// atMost means that less is better.
	atMost bool
}

// marks are the targets of the userspace engine, the same on both lossless wires.
// The floor shows what TUN and UDP cost any program; the engine's throughput is
// compared with it, and latency and small packets with kernel VXLAN.
var marks = onEachWire(
	mark{what: "TCP, 1 stream", path: "twill", to: "floor", load: "tcp1", m: Throughput, want: 0.95},
	mark{what: "TCP, 4 streams", path: "twill", to: "floor", load: "tcp4", m: Throughput, want: 0.95},
	mark{what: "CPU s/GB, 1 stream", path: "twill", to: "floor", load: "tcp1", m: CPUPerGB, want: 1.08, atMost: true},
	mark{what: "CPU s/GB, 1 stream back", path: "twill", to: "floor", load: "tcp1r", m: CPUPerGB, want: 1.08, atMost: true},
	mark{what: "CPU s/GB, 4 streams", path: "twill", to: "floor", load: "tcp4", m: CPUPerGB, want: 1.08, atMost: true},
	mark{what: "CPU s/GB, 4 streams back", path: "twill", to: "floor", load: "tcp4r", m: CPUPerGB, want: 1.08, atMost: true},
	mark{what: "UDP 64 B received, 4 senders", path: "twill", to: Baseline, load: "udp64", m: PacketRate, want: 1.2},
	mark{what: "UDP 64 B received, 1 sender", path: "twill", to: Baseline, load: "udp64-1", m: PacketRate, want: 1.2},
	mark{what: "UDP 64 B received, 4 senders", path: "twill", to: "floor", load: "udp64", m: PacketRate, want: 2},
	mark{what: "UDP 64 B received, 1 sender", path: "twill", to: "floor", load: "udp64-1", m: PacketRate, want: 2},
	mark{what: "half RTT p50", path: "twill", to: Baseline, load: "rr", m: HalfRTT50, want: 1.25, atMost: true},
	mark{what: "half RTT p99", path: "twill", to: Baseline, load: "rr", m: HalfRTT99, want: 1.5, atMost: true},
	mark{what: "half RTT p50 beside a stream", path: "twill", to: Baseline, load: "rr-load", m: HalfRTT50, want: 3, atMost: true},
	mark{what: "TCP, 1 stream, plain engine", path: "twill-plain", to: "flannel-udp", load: "tcp1", m: Throughput, want: 2},
	mark{what: "TCP, 1 stream, plain engine", path: "twill-plain", to: "floor-plain", load: "tcp1", m: Throughput, want: 0.9},
	mark{what: "resident set, MB, one pair of threads", path: "twill-1", m: PeakRSS, want: 30, atMost: true},
)

// onEachWire returns the marks for the super wire and for the mtu wire.
func onEachWire(marks ...mark) []mark {
	var all []mark
	for _, m := range marks {
		for _, wire := range []string{"super", "mtu"} {
			m.wire = wire
			all = append(all, m)
		}
	}
	return all
}

// microMark is a mark that is checked by Go benchmarks.
type microMark struct {
	what   string
	prefix string // of the benchmarks' names; the worst result counts
	unit   string
	want   float64 // the largest value that meets the mark
}

var microMarks = []microMark{
	{"look-up in a table of 1,000 leases, ns", "Resolver/table_of_1000", "ns/op", 20},
	{"allocations, sending", "TX", "allocs/op", 0},
	{"allocations, receiving", "RX", "allocs/op", 0},
}

// The verdicts on a mark.
const (
	reached     = "reached"
	notReached  = "**not reached**"
	notMeasured = "not measured"
)

// verdict compares a figure with a mark, using its exact rather than printed value.
func verdict(v, want float64, atMost bool) string {
	if atMost && v <= want || !atMost && v >= want {
		return reached
	}
	return notReached
}

// writeMarks writes the targets beside the measured values.
func (r *Report) writeMarks(b *strings.Builder) {
	rows := [][]string{{"mark", "wire", "against", "wanted", "measured", ""}}
	for _, m := range marks {
		rows = append(rows, r.markRow(m))
	}
	for _, m := range microMarks {
		row := []string{m.what, "", "", "≤ " + threeDigits(m.want), noFigure, notMeasured}
		if v, ok := worst(r.Micro, m.prefix, m.unit); ok {
			row[4], row[5] = threeDigits(v), verdict(v, m.want, true)
		}
		rows = append(rows, row)
	}
	writeTable(b, 3, rows)
}

func (r *Report) markRow(m mark) []string {
	sign, times := "≥ ", " ×"
	if m.atMost {
		sign = "≤ "
	}
	if m.to == "" {
		times = ""
	}
	row := []string{m.what, m.wire, m.to, sign + threeDigits(m.want) + times, noFigure, notMeasured}
	w := r.wire(m.wire)
	if w == nil {
		return row
	}
	if s, ok := w.markFigure(m); ok {
		row[4] = ratioDigits(s.Median) + times
		if s.Rounds > 1 {
			row[4] += fmt.Sprintf(" (%s–%s)", ratioDigits(s.Min), ratioDigits(s.Max))
		}
		row[5] = verdict(s.Median, m.want, m.atMost)
	}
	return row
}

// markFigure returns the figure that is compared with a mark.
func (w *Wire) markFigure(m mark) (Stat, bool) {
	switch {
	case m.to != "":
		return w.Ratio(m.path, m.to, m.load, m.m)
	case m.load != "":
		return w.Figure(m.path, m.load, m.m)
	}
	var largest Stat
	for _, run := range w.Runs { // finds the loads; duplicates do no harm
		if s, ok := w.Figure(m.path, run.Load, m.m); ok && s.Median > largest.Median {
			largest = s
		}
	}
	return largest, largest.Rounds > 0
}

// wire finds a wire by its name; it returns nil if the wire was not measured.
func (r *Report) wire(name string) *Wire {
	for _, w := range r.Wires {
		if w.Name == name {
			return w
		}
	}
	return nil
}
