package report

import (
	"fmt"
	"slices"
	"strings"
)

// section is a table of a wire: a row for each path.
type section struct {
	title   string
	columns []column
}

// column is a metric under a load.
type column struct {
	head   string
	load   string
	metric Metric
}

// tcpLoads are the loads of TCP streams and their table headings.
var tcpLoads = []Named{
	{"tcp1", "1 →"}, {"tcp4", "4 →"}, {"tcp16", "16 →"},
	{"tcp1r", "1 ←"}, {"tcp4r", "4 ←"}, {"tcp16r", "16 ←"}, {"tcp2way", "1 ⇄"},
}

var sections = []section{
	{"TCP: Gbit/s received, by streams and direction", each(tcpLoads, Throughput)},
	{"TCP: CPU seconds of the machine per GB", each(tcpLoads, CPUPerGB)},
	{"TCP: retransmitted segments", each(tcpLoads, Retransmits)},
	{"UDP: thousands of packets received per second at less than 1 % loss, and the CPU seconds of the machine per million; four senders unless stated otherwise", []column{
		{"64 B, one sender", "udp64-1", PacketRate}, {"64 B", "udp64", PacketRate}, {"512 B", "udp512", PacketRate}, {"full size", "udpmtu", PacketRate},
		{"full size, Gbit/s", "udpmtu", Throughput},
		{"64 B, one sender, CPU", "udp64-1", CPUPerMillion}, {"64 B, CPU", "udp64", CPUPerMillion}, {"512 B, CPU", "udp512", CPUPerMillion}, {"full size, CPU", "udpmtu", CPUPerMillion},
	}},
	{"Requests of 64 B, one after the other: half of the round trip, µs, and the CPU seconds of the machine per million", []column{
		{"p50", "rr", HalfRTT50}, {"p99", "rr", HalfRTT99}, {"p99.9", "rr", HalfRTT999}, {"CPU", "rr", CPUPerMillion},
	}},
	{"The same beside one TCP stream at full speed", []column{
		{"p50", "rr-load", HalfRTT50}, {"p99", "rr-load", HalfRTT99}, {"p99.9", "rr-load", HalfRTT999},
		{"the stream, Gbit/s", "rr-load", Throughput},
	}},
	{"TCP connections, opened and closed", []column{
		{"a second", "connect", ConnectionRate}, {"CPU s/million", "connect", CPUPerMillion},
	}},
	{"Memory: largest resident set of a daemon under the load, MB", []column{
		{"TCP 1 →", "tcp1", PeakRSS}, {"TCP 4 →", "tcp4", PeakRSS}, {"TCP 16 →", "tcp16", PeakRSS},
		{"UDP 64 B", "udp64", PeakRSS}, {"UDP full size", "udpmtu", PeakRSS}, {"connections", "connect", PeakRSS},
	}},
}

// each returns a column for each of the loads.
func each(loads []Named, m Metric) []column {
	var columns []column
	for _, l := range loads {
		columns = append(columns, column{l.Title, l.Name, m})
	}
	return columns
}

// writeTables writes a wire's figures: medians, minimum and maximum, and in
// brackets the median ratio to the baseline.
func (w *Wire) writeTables(b *strings.Builder) {
	for _, p := range w.Paths {
		if p.Error != "" {
			fmt.Fprintf(b, "\n**%s** did not run: %s\n", p.Title, oneLine(p.Error))
		}
	}
	for _, s := range sections {
		rows := w.rows(s)
		if rows == nil {
			continue
		}
		fmt.Fprintf(b, "\n**%s**\n\n", s.title)
		writeTable(b, 1, rows)
	}
}

// rows fills a section with the measured figures; it returns nil if there are none.
func (w *Wire) rows(s section) [][]string {
	columns := slices.DeleteFunc(slices.Clone(s.columns), func(c column) bool {
		return !slices.ContainsFunc(w.Paths, func(p Path) bool {
			_, ok := w.Figure(p.Name, c.load, c.metric)
			return ok
		})
	})
	if len(columns) == 0 {
		return nil
	}
	head := []string{""}
	for _, c := range columns {
		head = append(head, c.head)
	}
	rows := [][]string{head}
	for _, p := range w.Paths {
		row := []string{p.Title}
		for i, c := range columns {
			cell := w.cell(p.Name, c)
			if p.Error != "" && i == 0 {
				cell = "did not run, see above"
			}
			row = append(row, cell)
		}
		if slices.ContainsFunc(row[1:], func(cell string) bool { return cell != noFigure }) {
			rows = append(rows, row)
		}
	}
	return rows
}

// noFigure is printed if nothing was measured.
const noFigure = "–"

// cell formats a figure with its spread and its ratio to the baseline's.
func (w *Wire) cell(path string, c column) string {
	v, ok := w.Figure(path, c.load, c.metric)
	switch {
	case !ok && w.failed(path, c.load):
		return "failed"
	case !ok:
		return noFigure
	}
	s := threeDigits(v.Median)
	if v.Rounds > 1 && v.Min != v.Max {
		s += " (" + threeDigits(v.Min) + "–" + threeDigits(v.Max) + ")"
	}
	if path == Baseline || !c.metric.Compare {
		return s
	}
	if ratio, ok := w.Ratio(path, Baseline, c.load, c.metric); ok {
		s += " [" + ratioDigits(ratio.Median) + "]"
	}
	return s
}
