package report

import (
	"math"
	"slices"
	"strings"
)

// chart is a plot with a panel for each wire that it covers.
type chart struct {
	name   string // of its files
	title  string
	panels []panel
}

// panel is a plot of the paths' figures under several loads.
type panel struct {
	title  string
	y      string   // what the axis says
	groups []string // along x
	series []series
	log    bool // dots on a logarithmic axis; else bars
	line   bool // at 1.0, for ratios
	// least and most are the ends of the y axis, the same in all panels of a
	// chart.
	least, most float64
}

// series is the results of one path, a value for each group; Rounds is 0 if
// there is none.
type series struct {
	path   Named
	values []Stat
}

// charts returns all plots for which there are figures.
func (r *Report) charts() []chart {
	tcp := []column{{"TCP 1", "tcp1", Throughput}, {"TCP 4", "tcp4", Throughput}, {"TCP 16", "tcp16", Throughput}}
	udp := []column{{"UDP 64 B\n1 sender", "udp64-1", PacketRate}, {"UDP 64 B", "udp64", PacketRate}, {"UDP 512 B", "udp512", PacketRate}, {"UDP full", "udpmtu", PacketRate}}
	cpu := []column{{"TCP 1", "tcp1", CPUPerGB}, {"TCP 4", "tcp4", CPUPerGB}, {"TCP 16", "tcp16", CPUPerGB}}
	latency := []column{
		{"p50", "rr", HalfRTT50}, {"p99", "rr", HalfRTT99}, {"p99.9", "rr", HalfRTT999},
		{"p50\nloaded", "rr-load", HalfRTT50}, {"p99\nloaded", "rr-load", HalfRTT99}, {"p99.9\nloaded", "rr-load", HalfRTT999},
	}
	charts := []chart{
		{name: "ratio", title: "Throughput against kernel VXLAN", panels: r.panels(slices.Concat(tcp, udp), panel{y: "× kernel VXLAN", line: true})},
		{name: "tcp", title: "TCP throughput", panels: r.panels(tcp, panel{y: "Gbit/s received"})},
		{name: "udp", title: "UDP packets received at less than 1 % loss", panels: r.panels(udp, panel{y: "1,000 packets/s"})},
		{name: "latency", title: "Half of a round trip, idle and beside one TCP stream", panels: r.panels(latency, panel{y: "µs, logarithmic", log: true})},
		{name: "cpu", title: "CPU time of the machine for a GB of TCP", panels: r.panels(cpu, panel{y: "CPU s/GB, logarithmic", log: true})},
		{name: "loss", title: "TCP where the wire loses 0.1 % of the frames", panels: r.lossPanels(tcp[:2])},
	}
	charts = slices.DeleteFunc(charts, func(c chart) bool { return len(c.panels) == 0 })
	for _, c := range charts {
		c.shareAxis()
	}
	return charts
}

// shareAxis gives all panels a common y axis that covers all their values, with
// room for labels.
func (c chart) shareAxis() {
	least, most := math.Inf(1), 0.0
	for _, p := range c.panels {
		for _, s := range p.series {
			for _, v := range s.values {
				if v.Rounds > 0 {
					least, most = min(least, v.Min), max(most, v.Max)
				}
			}
		}
	}
	for i := range c.panels {
		p := &c.panels[i]
		switch {
		case p.log:
			p.least, p.most = least/1.6, most*1.3
		case p.line:
			p.least, p.most = 0, max(most, 1.2)*1.1
		default:
			p.least, p.most = 0, most*1.1
		}
	}
}

// plotted reports whether a path is plotted. It leaves out the bare wire, which is the
// generator's ceiling and would compress all other values near zero, and twill with one
// shard, which is measured only for its memory.
func plotted(p Path) bool { return p.Name != "wire" && p.Name != "twill-1" && p.Error == "" }

// panels makes a panel like the given one for each wire without loss.
func (r *Report) panels(columns []column, like panel) []panel {
	var panels []panel
	for _, w := range r.Wires {
		if strings.HasSuffix(w.Name, lossSuffix) {
			continue
		}
		p := like
		p.title = "wire " + w.Name + ": " + w.Title
		for _, c := range columns {
			p.groups = append(p.groups, c.head)
		}
		for _, path := range w.Paths {
			if !plotted(path) || like.line && path.Name == Baseline {
				continue
			}
			s := series{path: path.Named}
			for _, c := range columns {
				v, _ := w.Figure(path.Name, c.load, c.metric)
				if like.line {
					v, _ = w.Ratio(path.Name, Baseline, c.load, c.metric)
				}
				s.values = append(s.values, v)
			}
			p.add(s)
		}
		if p.dropEmptyGroups(); len(p.series) > 0 {
			panels = append(panels, p)
		}
	}
	return panels
}

// lossSuffix ends the names of wires that lose frames.
const lossSuffix = "+loss"

// lossPanels puts each wire with loss beside the same wire without loss.
func (r *Report) lossPanels(columns []column) []panel {
	var panels []panel
	for _, lossy := range r.Wires {
		name, cut := strings.CutSuffix(lossy.Name, lossSuffix)
		clean := r.wire(name)
		if !cut || clean == nil {
			continue
		}
		p := panel{title: "wire " + name, y: "Gbit/s received"}
		for _, c := range columns {
			p.groups = append(p.groups, c.head, c.head+"\nwith loss")
		}
		for _, path := range lossy.Paths {
			if !plotted(path) {
				continue
			}
			s := series{path: path.Named}
			for _, c := range columns {
				without, _ := clean.Figure(path.Name, c.load, c.metric)
				with, _ := lossy.Figure(path.Name, c.load, c.metric)
				s.values = append(s.values, without, with)
			}
			p.add(s)
		}
		if len(p.series) > 0 {
			panels = append(panels, p)
		}
	}
	return panels
}

// add adds a series if it has any values.
func (p *panel) add(s series) {
	if slices.ContainsFunc(s.values, func(v Stat) bool { return v.Rounds > 0 }) {
		p.series = append(p.series, s)
	}
}

// dropEmptyGroups removes the groups in which no path has a value.
func (p *panel) dropEmptyGroups() {
	for i := len(p.groups) - 1; i >= 0; i-- {
		if slices.ContainsFunc(p.series, func(s series) bool { return s.values[i].Rounds > 0 }) {
			continue
		}
		p.groups = slices.Delete(p.groups, i, i+1)
		for j := range p.series {
			p.series[j].values = slices.Delete(p.series[j].values, i, i+1)
		}
	}
}
