package report

import (
	"fmt"
	"strings"
)

// mark is something that twill has to reach.
type mark struct {
	what string
	wire string
	path string
	to   string // the path that the figure is divided by; empty: the figure itself counts
	load string // empty: the load that shows the largest figure counts
	m    Metric
	want float64
	// atMost says that less is better.
	atMost bool
}

// marks are those of the design of the fast path.
var marks = []mark{
	{"TCP, 1 stream", "super", "twill", Baseline, "tcp1", Throughput, 1.0, false},
	{"TCP, 1 stream", "mtu", "twill", Baseline, "tcp1", Throughput, 1.3, false},
	{"TCP, 4 streams", "super", "twill", Baseline, "tcp4", Throughput, 0.8, false},
	{"TCP, 4 streams", "mtu", "twill", Baseline, "tcp4", Throughput, 1.25, false},
	{"UDP 64 B received", "super", "twill", Baseline, "udp64", PacketRate, 2.5, false},
	{"UDP 64 B received", "mtu", "twill", Baseline, "udp64", PacketRate, 2.5, false},
	{"half RTT p50", "super", "twill", Baseline, "rr", HalfRTT50, 1.3, true},
	{"half RTT p50", "mtu", "twill", Baseline, "rr", HalfRTT50, 1.3, true},
	{"half RTT p99", "super", "twill", Baseline, "rr", HalfRTT99, 1.5, true},
	{"half RTT p99", "mtu", "twill", Baseline, "rr", HalfRTT99, 1.5, true},
	{"half RTT p99 beside a stream", "super", "twill", Baseline, "rr-load", HalfRTT99, 3, true},
	{"half RTT p99 beside a stream", "mtu", "twill", Baseline, "rr-load", HalfRTT99, 3, true},
	{"CPU s/GB, 1 stream", "super", "twill", Baseline, "tcp1", CPUPerGB, 1.8, true},
	{"CPU s/GB, 1 stream", "mtu", "twill", Baseline, "tcp1", CPUPerGB, 1.35, true},
	{"TCP, 1 stream", "super", "twill", "flannel-udp", "tcp1", Throughput, 15, false},
	{"TCP, 1 stream", "mtu", "twill", "flannel-udp", "tcp1", Throughput, 15, false},
	{"TCP, 1 stream", "super", "twill", "wireguard-go", "tcp1", Throughput, 3, false},
	{"TCP, 1 stream", "mtu", "twill", "wireguard-go", "tcp1", Throughput, 3, false},
	{"TCP, 1 stream, plain engine", "super", "twill-plain", "flannel-udp", "tcp1", Throughput, 2, false},
	{"TCP, 1 stream, plain engine", "mtu", "twill-plain", "flannel-udp", "tcp1", Throughput, 2, false},
	{"resident set, MB, one shard", "super", "twill-1", "", "", PeakRSS, 30, true},
	{"resident set, MB, one shard", "mtu", "twill-1", "", "", PeakRSS, 30, true},
}

// microMark is a mark that Go benchmarks answer.
type microMark struct {
	what   string
	prefix string // of the benchmarks' names; the worst of them counts
	unit   string
	want   float64 // at most
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

// verdict compares a figure with a mark, as it is and not as it is printed.
func verdict(v, want float64, atMost bool) string {
	if atMost && v <= want || !atMost && v >= want {
		return reached
	}
	return notReached
}

// writeMarks writes what is to be reached beside what was measured.
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

// markFigure is what is held against a mark.
func (w *Wire) markFigure(m mark) (Stat, bool) {
	switch {
	case m.to != "":
		return w.Ratio(m.path, m.to, m.load, m.m)
	case m.load != "":
		return w.Figure(m.path, m.load, m.m)
	}
	var largest Stat
	for _, run := range w.Runs { // finds the loads; asking twice does no harm
		if s, ok := w.Figure(m.path, run.Load, m.m); ok && s.Median > largest.Median {
			largest = s
		}
	}
	return largest, largest.Rounds > 0
}

// wire finds a wire by its name; nil if it was not there.
func (r *Report) wire(name string) *Wire {
	for _, w := range r.Wires {
		if w.Name == name {
			return w
		}
	}
	return nil
}
