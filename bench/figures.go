package bench

// Metric is a quantity that a load measures.
type Metric struct {
	Key  string // in JSON
	Unit string // in tables, with what is meant if the unit does not say it
	// Compare says that the ratio to another path's figure means something.
	Compare bool
}

// Figures are measured values by Metric.Key.
type Figures map[string]float64

var (
	throughput    = Metric{"gbit_per_s", "Gbit/s", true}
	packetRate    = Metric{"kpps", "kpps received", true}
	loss          = Metric{"loss_percent", "% lost", false}
	retransmits   = Metric{"retransmits", "retransmits", false}
	cpuPerGB      = Metric{"cpu_s_per_gb", "CPU s/GB", true}
	cpuPerMpkt    = Metric{"cpu_s_per_million_packets", "CPU s/million packets", true}
	daemonCPU     = Metric{"daemon_cpu_s_per_gb", "of it daemons, s/GB", false}
	halfRTT50     = Metric{"half_rtt_p50_us", "half RTT p50, µs", true}
	halfRTT99     = Metric{"half_rtt_p99_us", "half RTT p99, µs", true}
	halfRTT999    = Metric{"half_rtt_p999_us", "half RTT p99.9, µs", true}
	pingSize      = Metric{"ping_bytes", "bytes, largest that fits", false}
	pingRoundTrip = Metric{"ping_rtt_us", "RTT, µs", true}
)
