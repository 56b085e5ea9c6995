package report

import (
	"fmt"
	"io"
	"strings"
)

// summary lists the rows of WriteSummary.
var summary = []column{
	{"ping with DF, bytes that fit", "ping", PingSize},
	{"ping of that size, RTT, µs", "ping", PingRoundTrip},
	{"TCP, 1 stream, Gbit/s", "tcp1", Throughput},
	{"  CPU s/GB", "tcp1", CPUPerGB},
	{"TCP, 4 streams, Gbit/s", "tcp4", Throughput},
	{"  CPU s/GB", "tcp4", CPUPerGB},
	{"UDP, full size, Gbit/s", "udpmtu", Throughput},
	{"  % lost", "udpmtu", Loss},
	{"  CPU s/million packets", "udpmtu", CPUPerMillion},
	{"64 B there and back, half RTT p50, µs", "rr", HalfRTT50},
	{"  p99, µs", "rr", HalfRTT99},
}

// WriteSummary writes a short table of the first wire: a row for each figure, a
// column for each path, followed by the circumstances and the failures.
func (r *Report) WriteSummary(out io.Writer) error {
	w := r.Wires[0]
	rows := [][]string{{""}}
	for _, p := range w.Paths {
		rows[0] = append(rows[0], p.Title)
	}
	for _, c := range summary {
		row, some := []string{c.head}, false
		for _, p := range w.Paths {
			cell := w.cell(p.Name, column{c.head, c.load, c.metric})
			row, some = append(row, cell), some || cell != noFigure
		}
		if some {
			rows = append(rows, row)
		}
	}
	var b strings.Builder
	writeTable(&b, 1, rows)
	fmt.Fprintf(&b, "\nMedians of %d interleaved rounds of %g s, in parentheses the minimum and maximum, in brackets the\n"+
		"ratio to kernel VXLAN. CPU time is the whole machine's, generator included. Wire: %s, MTU %d.\n%s.\n",
		w.Rounds, r.Seconds, w.Name, r.MTU, r.Machine)
	if warning := r.Warning(); warning != "" {
		fmt.Fprintln(&b, warning)
	}
	for _, line := range r.Failures() {
		fmt.Fprintln(&b, line)
	}
	_, err := io.WriteString(out, b.String())
	return err
}
