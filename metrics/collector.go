package metrics

import (
	"cmp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// State is what the collector reports at each scrape besides the counters.
type State struct {
	Peers  int // other nodes that packets are sent to
	Narrow int // of these, those whose path loses full-size packets without an ICMP error
	Leases int // leases in force, including the node's own

	// SourceOK is false while the lease store holds something invalid, for
	// example a broken file, and the last good leases stay in force.
	SourceOK bool
	// SourceAway is for how long the lease store has not answered or has refused
	// this node; 0: it answers.
	SourceAway time.Duration

	// Device describes the TUN device; it is the zero value while there is none.
	Device DeviceInfo
	// Backend describes which backends the node uses for its peers.
	Backend BackendInfo
	// Offloads reports for each kernel offload, by name, whether it is in force.
	Offloads map[string]bool
}

// DeviceInfo describes the TUN device: its name, its kind ("offload",
// "plain") and why it is of this kind.
type DeviceInfo struct{ Name, Kind, Reason string }

// BackendInfo describes the choice of backends: the one that is configured
// ("auto"), the one that the node prefers ("vxlan"), and why.
type BackendInfo struct{ Configured, Backend, Reason string }

// NewRegistry returns a registry with everything that twilld exports to
// Prometheus: the data plane's counters, its state, the Go runtime, the
// process and the build. shards and state are called at each scrape, from
// several goroutines; shards returns nil as long as there is no data plane.
//
// There are no per-peer series, since n nodes would create n² of them. The
// status document has the counters of each peer.
func NewRegistry(shards func() []*Shard, state func() State, version string) *prometheus.Registry {
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name:        "twill_build_info",
		Help:        "Always 1; the label is the version of the running binary.",
		ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	r := prometheus.NewRegistry()
	r.MustRegister(
		build,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		&collector{shards: shards, state: state},
	)
	return r
}

type collector struct {
	shards func() []*Shard
	state  func() State
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range directionCounters {
		ch <- m.desc
	}
	for _, m := range directionHistograms {
		ch <- m.desc
	}
	for _, m := range shardCounters {
		ch <- m.desc
	}
	for _, d := range []*prometheus.Desc{dropDesc, peersDesc, narrowDesc, leasesDesc, sourceDesc, awayDesc, deviceDesc, backendDesc, offloadDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. The counters are read one by one
// while the shards keep counting.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for i, s := range c.shards() {
		shard := cmp.Or(s.Name, strconv.Itoa(i))
		collectDirection(ch, &s.TX, shard, "tx")
		collectDirection(ch, &s.RX, shard, "rx")
		for _, m := range shardCounters {
			count(ch, m.desc, m.read(s), shard)
		}
	}
	st := c.state()
	gauge(ch, peersDesc, float64(st.Peers))
	gauge(ch, narrowDesc, float64(st.Narrow))
	gauge(ch, leasesDesc, float64(st.Leases))
	gauge(ch, sourceDesc, boolToFloat(st.SourceOK))
	gauge(ch, awayDesc, st.SourceAway.Seconds())
	if d := st.Device; d.Kind != "" {
		gauge(ch, deviceDesc, 1, d.Name, d.Kind, d.Reason)
	}
	if b := st.Backend; b.Configured != "" {
		gauge(ch, backendDesc, 1, b.Configured, b.Backend, b.Reason)
	}
	for name, inForce := range st.Offloads {
		gauge(ch, offloadDesc, boolToFloat(inForce), name)
	}
}

func collectDirection(ch chan<- prometheus.Metric, d *Direction, shard, direction string) {
	for _, m := range directionCounters {
		count(ch, m.desc, m.read(d), shard, direction)
	}
	for _, m := range directionHistograms {
		n, sum, buckets := m.read(d).Snapshot()
		ch <- prometheus.MustNewConstHistogram(m.desc, n, float64(sum), buckets, shard, direction)
	}
	for reason := range NumDrops {
		count(ch, dropDesc, d.Drops[reason].Load(), shard, direction, reason.String())
	}
}

func count(ch chan<- prometheus.Metric, desc *prometheus.Desc, v uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
}

func gauge(ch chan<- prometheus.Metric, desc *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
}

// boolToFloat is Prometheus' form of a boolean.
func boolToFloat(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
