// Package prom exports the counters and the state of twilld to Prometheus. It has the help
// texts of all metrics. Only the daemon needs it.
package prom

import (
	"cmp"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/twillnet/twill/metrics"
)

// NewRegistry returns a registry with everything that twilld exports to
// Prometheus: the data plane's counters, its state, the Go runtime, the
// process and the build. shards and state are called at each scrape, possibly
// concurrently; shards returns nil as long as there is no data plane.
//
// There are no per-peer series, since n nodes would create n² of them. The
// status document has the counters of each peer.
func NewRegistry(shards func() []*metrics.Shard, state func() metrics.State, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{shards: shards, state: state, version: version},
	)
	return r
}

type collector struct {
	shards  func() []*metrics.Shard
	state   func() metrics.State
	version string
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for f := range families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector. The counters are read one by one
// while the shards keep counting.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	buildInfo.put(ch, 1, c.version)
	for i, s := range c.shards() {
		shard := cmp.Or(s.Name, strconv.Itoa(i))
		collectDirection(ch, &s.TX, shard, "tx")
		collectDirection(ch, &s.RX, shard, "rx")
		for _, m := range shardCounters {
			m.put(ch, float64(m.read(s)), shard)
		}
	}
	st := c.state()
	for _, m := range stateMetrics {
		m.read(&st, func(v float64, labels ...string) { m.put(ch, v, labels...) })
	}
}

func collectDirection(ch chan<- prometheus.Metric, d *metrics.Direction, shard, direction string) {
	for _, m := range directionCounters {
		m.put(ch, float64(m.read(d)), shard, direction)
	}
	for _, m := range directionHistograms {
		n, sum, buckets := m.read(d).Snapshot()
		ch <- prometheus.MustNewConstHistogram(m.desc, n, float64(sum), buckets, shard, direction)
	}
	for reason := range metrics.NumDrops {
		dropped.put(ch, float64(d.Drops[reason].Load()), shard, direction, reason.String())
	}
}
