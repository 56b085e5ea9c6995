package report

// Metric is a quantity that a load measures.
type Metric struct {
	Key  string // in JSON
	Unit string // in tables, with an explanation if the unit alone is not clear
	// Compare means that the ratio to another path's figure is meaningful.
	Compare bool
}

// Figures are measured values by Metric.Key.
type Figures map[string]float64

// GB, MB and the like are powers of ten.
var (
	Throughput     = Metric{"gbit_per_s", "Gbit/s", true}
	PacketRate     = Metric{"kpps", "kpps received", true}
	ConnectionRate = Metric{"connections_per_s", "connections/s", true}
	Loss           = Metric{"loss_percent", "% lost", false}
	Retransmits    = Metric{"retransmits", "retransmits", false}
	CPUPerGB       = Metric{"cpu_s_per_gb", "CPU s/GB", true}
	CPUPerMillion  = Metric{"cpu_s_per_million", "CPU s/million", true}
	// DaemonCPUPerGB is the part of CPUPerGB used by the daemons' own threads, system
	// calls included.
	DaemonCPUPerGB = Metric{"daemon_cpu_s_per_gb", "by daemons, s/GB", false}
	// PeakRSS is the peak resident set size of the larger of the two daemons while the
	// load runs.
	PeakRSS = Metric{"daemon_peak_rss_mb", "MB", false}
	// A half RTT is half the time between a request and its answer.
	HalfRTT50     = Metric{"half_rtt_p50_us", "half RTT p50, µs", true}
	HalfRTT99     = Metric{"half_rtt_p99_us", "half RTT p99, µs", true}
	HalfRTT999    = Metric{"half_rtt_p999_us", "half RTT p99.9, µs", true}
	PingSize      = Metric{"ping_bytes", "bytes, largest that fits", false}
	PingRoundTrip = Metric{"ping_rtt_us", "RTT, µs", true}
)
