package prom

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Probes counts the results of probes of the peers. The series are by backend, never by
// peer, since n nodes would create n² of them. A histogram shows how many peers are far or
// lossy, and the status document shows which ones. Probes is safe for concurrent use.
type Probes struct {
	rtt, loss  *prometheus.HistogramVec
	sent, lost *prometheus.CounterVec
	silent     *prometheus.GaugeVec
}

var (
	probeRTT    = histogram("probe_rtt_seconds", "Round-trip times of the probes to all peers, over the path of pods' packets.", "backend")
	probeLoss   = histogram("probe_loss_ratio", "Share of lost probes. Each peer adds one observation after every 10 probes to it.", "backend")
	probesSent  = counter("probes_total", "Probes that were answered or lost, to all peers.", "backend")
	probesLost  = counter("probes_lost_total", "Probes without an answer within 2 s.", "backend")
	probeSilent = gauge("probe_silent_peers", "Peers that answered none of the last three probes. twill status names them.", "backend")
)

// NewProbes returns the metrics of a node that probes its peers.
func NewProbes() *Probes {
	opts := func(f *family) prometheus.Opts { return prometheus.Opts{Name: f.Name, Help: f.Help} }
	buckets := func(f *family, bounds ...float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Name: f.Name, Help: f.Help, Buckets: bounds}
	}
	return &Probes{
		rtt: prometheus.NewHistogramVec(buckets(&probeRTT, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2),
			probeRTT.Labels),
		loss:   prometheus.NewHistogramVec(buckets(&probeLoss, 0, .1, .2, .3, .5, .9), probeLoss.Labels),
		sent:   prometheus.NewCounterVec(prometheus.CounterOpts(opts(&probesSent)), probesSent.Labels),
		lost:   prometheus.NewCounterVec(prometheus.CounterOpts(opts(&probesLost)), probesLost.Labels),
		silent: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts(&probeSilent)), probeSilent.Labels),
	}
}

// Answered counts a probe of a peer that is reached by backend.
func (p *Probes) Answered(backend string, rtt time.Duration) {
	p.rtt.WithLabelValues(backend).Observe(rtt.Seconds())
	p.sent.WithLabelValues(backend).Inc()
	p.lost.WithLabelValues(backend) // shows 0 from the first probe on
}

// Lost counts a probe without an answer.
func (p *Probes) Lost(backend string) {
	p.sent.WithLabelValues(backend).Inc()
	p.lost.WithLabelValues(backend).Inc()
}

// Loss counts the share of a peer's last probes that were lost, from 0 to 1.
func (p *Probes) Loss(backend string, ratio float64) {
	p.loss.WithLabelValues(backend).Observe(ratio)
}

// Silent sets how many peers do not answer, by backend.
func (p *Probes) Silent(peers map[string]int) {
	for backend, n := range peers {
		p.silent.WithLabelValues(backend).Set(float64(n))
	}
}

// Describe implements prometheus.Collector.
func (p *Probes) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range p.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (p *Probes) Collect(ch chan<- prometheus.Metric) {
	for _, c := range p.all() {
		c.Collect(ch)
	}
}

func (p *Probes) all() []prometheus.Collector {
	return []prometheus.Collector{p.rtt, p.loss, p.sent, p.lost, p.silent}
}
