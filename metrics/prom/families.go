package prom

import (
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Description describes a metric for documentation.
type Description struct {
	Name   string
	Type   string // counter, gauge, histogram
	Help   string
	Labels []string
}

// Descriptions returns all metrics of twilld besides those of the Go runtime and of the
// process. Those of Probes come last.
func Descriptions() (all []Description) {
	add := func(f family) bool {
		d := f.Description
		d.Labels = slices.Clone(d.Labels)
		all = append(all, d)
		return true
	}
	families(add)
	for _, f := range []family{probeRTT, probeLoss, probesSent, probesLost, probeSilent} {
		add(f)
	}
	return all
}

// family is a metric with all its series.
type family struct {
	Description
	desc *prometheus.Desc
	kind prometheus.ValueType // unused by histograms
}

func newFamily(kind string, name, help string, labels []string) family {
	name = "twill_" + name
	return family{
		Description: Description{Name: name, Type: kind, Help: help, Labels: labels},
		desc:        prometheus.NewDesc(name, help, labels, nil),
	}
}

func counter(name, help string, labels ...string) family {
	f := newFamily("counter", name, help, labels)
	f.kind = prometheus.CounterValue
	return f
}

func gauge(name, help string, labels ...string) family {
	f := newFamily("gauge", name, help, labels)
	f.kind = prometheus.GaugeValue
	return f
}

func histogram(name, help string, labels ...string) family {
	return newFamily("histogram", name, help, labels)
}

// put sends one sample.
func (f *family) put(ch chan<- prometheus.Metric, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...)
}

// families iterates over all metrics.
func families(yield func(family) bool) {
	all := []family{buildInfo, dropped}
	for _, m := range directionCounters {
		all = append(all, m.family)
	}
	for _, m := range directionHistograms {
		all = append(all, m.family)
	}
	for _, m := range shardCounters {
		all = append(all, m.family)
	}
	for _, m := range stateMetrics {
		all = append(all, m.family)
	}
	for _, f := range all {
		if !yield(f) {
			return
		}
	}
}
