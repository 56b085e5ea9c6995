package prom

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestProbesFollowTheRulesOfPrometheus(t *testing.T) {
	p := NewProbes()
	p.Answered("vxlan", time.Millisecond)
	p.Lost("udp")
	p.Loss("udp", 1)
	p.Silent(map[string]int{"udp": 1, "vxlan": 0})
	problems, err := testutil.CollectAndLint(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range problems {
		t.Errorf("%s: %s", x.Metric, x.Text)
	}
	r := prometheus.NewRegistry()
	r.MustRegister(p)
	for name, want := range map[string]int{
		"twill_probe_rtt_seconds": 1, "twill_probe_loss_ratio": 1, "twill_probes_total": 2, "twill_probes_lost_total": 2, "twill_probe_silent_peers": 2,
	} {
		if n, err := testutil.GatherAndCount(r, name); n != want || err != nil {
			t.Errorf("%s: %d series, %v; want %d", name, n, err, want)
		}
	}
}
