package e2e

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// probeMetrics returns what d serves to Prometheus at port 9100.
func (d *daemon) probeMetrics() string {
	d.t.Helper()
	transport := &http.Transport{DialContext: d.ns.Dial}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: testkit.Patience}).Get("http://127.0.0.1:9100/metrics")
	testkit.Must(d.t, err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	testkit.Must(d.t, err)
	return string(raw)
}

// probed returns what d reports about the peer with a public address.
func (d *daemon) probed(public string) (p status.Peer) {
	d.t.Helper()
	if dp := d.status().Dataplane; dp != nil {
		for _, p := range dp.Peers {
			if p.PublicIP.String() == public {
				return p
			}
		}
	}
	return p
}

// answered reports whether probes of the peer were answered, and when the last was.
func answered(p status.Peer) bool {
	return p.Probe != nil && p.Probe.RTT > 0 && p.Probe.Sent > p.Probe.Lost && p.Heard != nil
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	auto   │   vxlan  │  udp
//	probes │          │
func TestProbesShowLossAndWhenEachPeerWasHeard(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("auto", "--backend=auto", "--probe-interval=1", "--healthz-port=9100"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	a := c.running[0].(*daemon)
	for i, way := range map[int]string{1: "vxlan", 2: "udp"} {
		testkit.Eventually(t, "the peer that is reached by "+way+" answers", func() bool {
			p := a.probed(c.nodes[i].Addr.String())
			return p.Backend == way && answered(p)
		})
	}

	c.running[1].(*daemon).sh("iptables -A INPUT -p udp --dport 8472 -j DROP")
	testkit.Eventually(t, "losses are counted for one peer only", func() bool {
		lossy, whole := a.probed(c.nodes[1].Addr.String()), a.probed(c.nodes[2].Addr.String())
		return lossy.Probe != nil && lossy.Probe.Lost > 3 && *lossy.Heard > 3 && whole.Probe.Loss < lossy.Probe.Loss
	})
	testkit.Eventually(t, "and in the metrics", func() bool {
		text := a.probeMetrics()
		return strings.Contains(text, `twill_probe_silent_peers{backend="vxlan"} 1`) &&
			strings.Contains(text, `twill_probe_rtt_seconds_count{backend="udp"}`) &&
			strings.Contains(text, `twill_probe_loss_ratio_bucket{backend="udp",le="0"}`) &&
			!strings.Contains(text, c.nodes[1].Addr.String())
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	plain routes, probes
func TestProbesHearPeersBehindPlainRoutes(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "host-gw"}`})
	c.run(twill("host-gw", "--probe-interval=1"), twill("host-gw"))
	testkit.Eventually(t, "the peer answers", func() bool {
		p := c.running[0].(*daemon).probed(c.nodes[1].Addr.String())
		return p.Backend == "host-gw" && answered(p)
	})
	if p := c.running[1].(*daemon).probed(c.nodes[0].Addr.String()); p.Probe != nil {
		t.Errorf("a node that does not probe has %+v", p.Probe)
	}
}
