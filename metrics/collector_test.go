package metrics

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// running is the state of a daemon with everything in place.
var running = State{
	Peers: 2, Narrow: 1, Leases: 3, SourceOK: true,
	Device:   DeviceInfo{Name: "flannel0", Kind: "offload", Reason: "auto: the kernel grants it"},
	Offloads: map[string]bool{"udp-gso": true, "udp-gro": false},
}

func registry(st State, shards ...*Shard) *prometheus.Registry {
	return NewRegistry(func() []*Shard { return shards }, func() State { return st }, "v0.1.0")
}

func TestMetricsFollowPrometheusRules(t *testing.T) {
	problems, err := testutil.GatherAndLint(registry(running, new(Shard)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestCountersKeepShardDirectionAndReasonApart(t *testing.T) {
	var a, b Shard
	a.TX.Packets.Add(45)
	a.TX.Bytes.Add(66240)
	a.RX.Packets.Add(3)
	b.TX.Packets.Add(7)
	b.RX.Drop(DropSpoofedSource, 2)
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
		if got, want := len(f.Metric), 2*2*int(NumDrops); got != want {
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
	var s Shard
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
# HELP twill_device_info Always 1; the labels say which device runs (kind offload: a TUN device with super-packets, kind plain: one packet a read, kind vxlan and host-gw: the kernel's) and why.
# TYPE twill_device_info gauge
twill_device_info{device="flannel0",kind="offload",reason="auto: the kernel grants it"} 1
# HELP twill_lease_source_ok 1 if the newest version of the lease source is in force; 0 while it is refused and the last good one stays. The log and twill status say why.
# TYPE twill_lease_source_ok gauge
twill_lease_source_ok 1
# HELP twill_leases Leases in force, the own one included.
# TYPE twill_leases gauge
twill_leases 3
# HELP twill_narrow_peers Other nodes to which packets are kept smaller than the device's MTU, because the path loses larger ones without an ICMP error. twill status names them.
# TYPE twill_narrow_peers gauge
twill_narrow_peers 1
# HELP twill_offload_enabled 1 if the kernel offload is in force on every shard, 0 if it is turned off or was refused; twill status says why.
# TYPE twill_offload_enabled gauge
twill_offload_enabled{offload="udp-gro"} 0
twill_offload_enabled{offload="udp-gso"} 1
# HELP twill_peers Other nodes that packets are sent to.
# TYPE twill_peers gauge
twill_peers 2
`, "twill_build_info", "twill_device_info", "twill_lease_source_ok", "twill_leases", "twill_narrow_peers", "twill_offload_enabled", "twill_peers")
}

func TestBeforeTheDataPlaneIsUpNothingIsMadeUp(t *testing.T) {
	r := registry(State{})
	for _, name := range []string{"twill_packets_total", "twill_device_info", "twill_offload_enabled"} {
		if n, err := testutil.GatherAndCount(r, name); n != 0 || err != nil {
			t.Errorf("%s: %d series, %v", name, n, err)
		}
	}
}

func TestEveryReasonHasNameAndMeaning(t *testing.T) {
	seen := map[string]bool{}
	for d := range NumDrops {
		if d.String() == "" || d.Meaning() == "" || seen[d.String()] {
			t.Errorf("reason %d: name %q, meaning %q", d, d, d.Meaning())
		}
		seen[d.String()] = true
	}
	if NumDrops.String() != "unknown" || NumDrops.Meaning() != "" {
		t.Errorf("no reason: %q, %q", NumDrops, NumDrops.Meaning())
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	var h BatchSizes
	if n := testing.AllocsPerRun(100, func() { h.Observe(45) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func expect(t *testing.T, r *prometheus.Registry, want string, names ...string) {
	t.Helper()
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}
