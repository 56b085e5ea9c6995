package prom

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/twillnet/twill/metrics"
)

// running is the state of a daemon with everything in place.
var running = metrics.State{
	Peers: 2, Narrow: 1, Leases: 3,
	Source:      metrics.Source{OK: true, Watched: true, Updated: time.Unix(1_700_000_000, 500_000_000)},
	LeaseExpiry: time.Unix(1_700_086_400, 0),
	Rules:       &metrics.Rules{InForce: true, Writes: 2, Checked: time.Unix(1_700_000_060, 0)},
	Device:      metrics.DeviceInfo{Name: "flannel0", Kind: "offload", Reason: "auto: the kernel grants it"},
	Backend:     metrics.BackendInfo{Configured: "auto", Backend: "vxlan", Reason: "the kernel has it"},
	Traffic: []metrics.BackendTraffic{
		{Backend: "vxlan", TX: metrics.Flow{Packets: 10, Bytes: 1000, Dropped: 1}, RX: metrics.Flow{Packets: 20, Bytes: 2000, Dropped: 0}},
		{Backend: "udp", TX: metrics.Flow{Packets: 30, Bytes: 3000, Dropped: 0}, RX: metrics.Flow{Packets: 40, Bytes: 4000, Dropped: 2}},
	},
	Restarts: [metrics.NumRestarts]uint64{metrics.RestartLease: 1},
	Offloads: map[string]bool{"udp-gso": true, "udp-gro": false},
}

func registry(st metrics.State, shards ...*metrics.Shard) *prometheus.Registry {
	return NewRegistry(func() []*metrics.Shard { return shards }, func() metrics.State { return st }, "v0.1.0")
}

func TestMetricsFollowPrometheusRules(t *testing.T) {
	problems, err := testutil.GatherAndLint(registry(running, new(metrics.Shard)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestCountersKeepShardDirectionAndReasonApart(t *testing.T) {
	var a, b metrics.Shard
	a.TX.Packets.Add(45)
	a.TX.Bytes.Add(66240)
	a.RX.Packets.Add(3)
	b.TX.Packets.Add(7)
	b.RX.Drop(metrics.DropSpoofedSource, 2)
	b.CacheHits.Add(11)
	expect(t, registry(running, &a, &b), `
# HELP twill_packets_total Pod packets forwarded. A TCP super-packet counts as the segments it is cut into.
# TYPE twill_packets_total counter
twill_packets_total{direction="rx",shard="0"} 3
twill_packets_total{direction="rx",shard="1"} 0
twill_packets_total{direction="tx",shard="0"} 45
twill_packets_total{direction="tx",shard="1"} 7
# HELP twill_lookup_cache_hits_total Look-ups of a peer answered without the table of leases: by the last address or, before a large table, an LRU.
# TYPE twill_lookup_cache_hits_total counter
twill_lookup_cache_hits_total{shard="0"} 0
twill_lookup_cache_hits_total{shard="1"} 11
`, "twill_packets_total", "twill_lookup_cache_hits_total")

	families, err := registry(running, &a, &b).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "twill_dropped_packets_total" {
			continue
		}
		if got, want := len(f.Metric), 2*2*int(metrics.NumDrops); got != want {
			t.Errorf("%d drop series, want every reason in every direction: %d", got, want)
		}
		var nonzero []string
		for _, m := range f.Metric {
			if m.Counter.GetValue() == 2 {
				nonzero = append(nonzero, m.String())
			} else if m.Counter.GetValue() != 0 {
				t.Errorf("unexpected: %v", m)
			}
		}
		if len(nonzero) != 1 || !strings.Contains(nonzero[0], "spoofed_source") || !strings.Contains(nonzero[0], `"rx"`) {
			t.Errorf("drops: %v", nonzero)
		}
	}
}

func TestBatchSizesAreCumulative(t *testing.T) {
	var s metrics.Shard
	for _, n := range []int{1, 2, 3, 45, 128, 300} {
		s.TX.Segments.Observe(n)
	}
	expect(t, registry(running, &s), `
# HELP twill_datagram_packets Packets in each UDP message: segments of a GSO send (tx) or of a GRO receive (rx).
# TYPE twill_datagram_packets histogram
twill_datagram_packets_bucket{direction="rx",shard="0",le="1"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="2"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="4"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="8"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="16"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="32"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="64"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="128"} 0
twill_datagram_packets_bucket{direction="rx",shard="0",le="+Inf"} 0
twill_datagram_packets_sum{direction="rx",shard="0"} 0
twill_datagram_packets_count{direction="rx",shard="0"} 0
twill_datagram_packets_bucket{direction="tx",shard="0",le="1"} 1
twill_datagram_packets_bucket{direction="tx",shard="0",le="2"} 2
twill_datagram_packets_bucket{direction="tx",shard="0",le="4"} 3
twill_datagram_packets_bucket{direction="tx",shard="0",le="8"} 3
twill_datagram_packets_bucket{direction="tx",shard="0",le="16"} 3
twill_datagram_packets_bucket{direction="tx",shard="0",le="32"} 3
twill_datagram_packets_bucket{direction="tx",shard="0",le="64"} 4
twill_datagram_packets_bucket{direction="tx",shard="0",le="128"} 5
twill_datagram_packets_bucket{direction="tx",shard="0",le="+Inf"} 6
twill_datagram_packets_sum{direction="tx",shard="0"} 479
twill_datagram_packets_count{direction="tx",shard="0"} 6
`, "twill_datagram_packets")
}

func TestStateIsShownInGauges(t *testing.T) {
	expect(t, registry(running), `
# HELP twill_build_info Always 1; the label is the version of the running binary.
# TYPE twill_build_info gauge
twill_build_info{version="v0.1.0"} 1
# HELP twill_device_info Always 1; the labels say which device runs (kind offload: a TUN device with super-packets, kind plain: one packet per read, kind vxlan and host-gw: the kernel's) and why.
# TYPE twill_device_info gauge
twill_device_info{device="flannel0",kind="offload",reason="auto: the kernel grants it"} 1
# HELP twill_lease_source_ok 1 if the newest version of the lease source is in force; 0 while it is invalid and the last valid one stays in force. The log and twill status say why.
# TYPE twill_lease_source_ok gauge
twill_lease_source_ok 1
# HELP twill_leases Leases in force, including the node's own.
# TYPE twill_leases gauge
twill_leases 3
# HELP twill_narrow_peers Other nodes to which packets are kept smaller than the device's MTU, because the path loses larger ones without an ICMP error. twill status names them.
# TYPE twill_narrow_peers gauge
twill_narrow_peers 1
# HELP twill_offload_enabled 1 if the kernel offload is active on every shard, 0 if it is turned off or was refused; twill status says why.
# TYPE twill_offload_enabled gauge
twill_offload_enabled{offload="udp-gro"} 0
twill_offload_enabled{offload="udp-gso"} 1
# HELP twill_peers Other nodes that packets are sent to.
# TYPE twill_peers gauge
twill_peers 2
`, "twill_build_info", "twill_device_info", "twill_lease_source_ok", "twill_leases", "twill_narrow_peers", "twill_offload_enabled", "twill_peers")
}

func TestConnectionToTheStoreLeaseAndRulesAreShown(t *testing.T) {
	expect(t, registry(running), `
# HELP twill_lease_expiry_timestamp_seconds When this node's lease expires unless it is renewed, as Unix time. There is no series for a lease that does not expire, as in Kubernetes and in a file.
# TYPE twill_lease_expiry_timestamp_seconds gauge
twill_lease_expiry_timestamp_seconds 1.7000864e+09
# HELP twill_lease_source_up 1 while the lease source answers, 0 while it does not or refuses this node. The last known leases stay in force.
# TYPE twill_lease_source_up gauge
twill_lease_source_up 1
# HELP twill_lease_source_updated_timestamp_seconds When the last good update of the leases arrived, as Unix time. In a quiet cluster that may be long ago.
# TYPE twill_lease_source_updated_timestamp_seconds gauge
twill_lease_source_updated_timestamp_seconds 1.7000000005e+09
# HELP twill_lease_watch_up 1 while changes of the leases reach this node as they happen, 0 while the watch is interrupted or has not started.
# TYPE twill_lease_watch_up gauge
twill_lease_watch_up 1
# HELP twill_rules_checked_timestamp_seconds When the firewall rules were last found to be correct, as Unix time.
# TYPE twill_rules_checked_timestamp_seconds gauge
twill_rules_checked_timestamp_seconds 1.70000006e+09
# HELP twill_rules_in_force 1 if the firewall rules were correct when last checked, 0 if they could not be written. twill status says why.
# TYPE twill_rules_in_force gauge
twill_rules_in_force 1
# HELP twill_rules_writes_total Times the firewall rules differed from the wanted ones and were written. It grows while another program removes them.
# TYPE twill_rules_writes_total counter
twill_rules_writes_total 2
`, "twill_lease_expiry_timestamp_seconds", "twill_lease_source_up", "twill_lease_source_updated_timestamp_seconds",
		"twill_lease_watch_up", "twill_rules_checked_timestamp_seconds", "twill_rules_in_force", "twill_rules_writes_total")
	away := running
	away.Source.Away, away.Source.Watched = time.Minute, false
	expect(t, registry(away), `
# HELP twill_lease_source_up 1 while the lease source answers, 0 while it does not or refuses this node. The last known leases stay in force.
# TYPE twill_lease_source_up gauge
twill_lease_source_up 0
# HELP twill_lease_source_away_seconds For how long the lease source has not answered or has refused this node; 0 while it answers. The last known leases stay in force.
# TYPE twill_lease_source_away_seconds gauge
twill_lease_source_away_seconds 60
`, "twill_lease_source_up", "twill_lease_source_away_seconds")
}

func TestTrafficIsShownByBackendAndRestartsByCause(t *testing.T) {
	expect(t, registry(running), `
# HELP twill_backend_bytes_total Bytes of these packets, encapsulation not included.
# TYPE twill_backend_bytes_total counter
twill_backend_bytes_total{backend="udp",direction="rx"} 4000
twill_backend_bytes_total{backend="udp",direction="tx"} 3000
twill_backend_bytes_total{backend="vxlan",direction="rx"} 2000
twill_backend_bytes_total{backend="vxlan",direction="tx"} 1000
# HELP twill_backend_dropped_packets_total Packets of pods that the backend dropped; of vxlan, drops and errors of its devices. The reasons of udp are in twill_dropped_packets_total.
# TYPE twill_backend_dropped_packets_total counter
twill_backend_dropped_packets_total{backend="udp",direction="rx"} 2
twill_backend_dropped_packets_total{backend="udp",direction="tx"} 0
twill_backend_dropped_packets_total{backend="vxlan",direction="rx"} 0
twill_backend_dropped_packets_total{backend="vxlan",direction="tx"} 1
# HELP twill_data_plane_restarts_total Times the data plane was closed and opened again while the daemon ran, which takes milliseconds, by cause: its device was deleted, or the interface, the lease or the backends changed.
# TYPE twill_data_plane_restarts_total counter
twill_data_plane_restarts_total{cause="backend"} 0
twill_data_plane_restarts_total{cause="device"} 0
twill_data_plane_restarts_total{cause="interface"} 0
twill_data_plane_restarts_total{cause="lease"} 1
`, "twill_backend_bytes_total", "twill_backend_dropped_packets_total", "twill_data_plane_restarts_total")
}

// Of all reasons one is 1, so that a query that counts nodes by reason needs no other.
func TestNodeThatIsNotReadyShowsOneReason(t *testing.T) {
	st := running
	st.Waiting = metrics.WaitInterface
	expect(t, registry(st), `
# HELP twill_ready 1 if the node is ready: pods can reach those of other nodes. The same as /readyz.
# TYPE twill_ready gauge
twill_ready 0
# HELP twill_waiting 1 for the reason why the node is not ready, 0 for the others. twill status has the details.
# TYPE twill_waiting gauge
twill_waiting{reason="config"} 0
twill_waiting{reason="data_plane"} 0
twill_waiting{reason="interface"} 1
twill_waiting{reason="lease"} 0
twill_waiting{reason="rules"} 0
twill_waiting{reason="store"} 0
twill_waiting{reason="subnet_file"} 0
`, "twill_ready", "twill_waiting")
	for w := range metrics.NumWaits {
		if metrics.WaitOf(w.String()) != w {
			t.Errorf("%d is called %q, which means %d", w, w, metrics.WaitOf(w.String()))
		}
	}
}

// What is described to people is what is exported.
func TestEveryMetricIsDescribed(t *testing.T) {
	r, probes := registry(running, new(metrics.Shard)), NewProbes()
	r.MustRegister(probes)
	probes.Answered("vxlan", time.Millisecond)
	probes.Loss("vxlan", 0)
	probes.Silent(map[string]int{"vxlan": 0})
	got, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	described := Descriptions()
	for _, f := range got {
		if !strings.HasPrefix(f.GetName(), "twill_") {
			continue // of Go and the process
		}
		i := slices.IndexFunc(described, func(d Description) bool { return d.Name == f.GetName() })
		if i < 0 {
			t.Errorf("%s is not described", f.GetName())
			continue
		}
		d := described[i]
		described = slices.Delete(described, i, i+1)
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		slices.Sort(d.Labels)
		if d.Help != f.GetHelp() || !strings.EqualFold(d.Type, f.GetType().String()) || !slices.Equal(d.Labels, labels) {
			t.Errorf("%s is described as %+v, it is a %s with %v: %s", d.Name, d, f.GetType(), labels, f.GetHelp())
		}
	}
	for _, d := range described {
		t.Errorf("%s is described but has no series", d.Name)
	}
}

func TestBeforeTheDataPlaneIsUpNothingIsMadeUp(t *testing.T) {
	r := registry(metrics.State{})
	for _, name := range []string{
		"twill_packets_total", "twill_device_info", "twill_offload_enabled", "twill_backend_packets_total",
		"twill_lease_expiry_timestamp_seconds", "twill_lease_source_updated_timestamp_seconds", "twill_rules_in_force",
	} {
		if n, err := testutil.GatherAndCount(r, name); n != 0 || err != nil {
			t.Errorf("%s: %d series, %v", name, n, err)
		}
	}
}

func expect(t *testing.T, r *prometheus.Registry, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}
