package prom

import (
	"time"

	"github.com/twillnet/twill/metrics"
)

// Names and help texts of the metrics. Labels: shard is the number of the TUN
// queue and socket; direction is tx (pods to network) or rx (network to pods).

var directionCounters = []struct {
	family
	read func(*metrics.Direction) uint64
}{
	{counter("packets_total", "Pod packets forwarded. A TCP super-packet counts as the segments it is cut into.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.Packets.Load() }},
	{counter("bytes_total", "Bytes of the pod packets forwarded, IP header included, encapsulation not.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.Bytes.Load() }},
	{counter("datagrams_total", "UDP messages handed to (tx) or taken from (rx) the kernel. With UDP GSO and GRO one message carries many packets; if packets divided by datagrams is near 1 under load, the offload is not active.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.Datagrams.Load() }},
	{counter("tun_calls_total", "System calls that read (tx) or wrote (rx) the TUN device and moved something.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.TunCalls.Load() }},
	{counter("socket_calls_total", "sendmmsg (tx) or recvmmsg (rx) calls that moved something. The cost of small packets is in calls, not in bytes.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.SockCalls.Load() }},
	{counter("sleeps_total", "Times that a thread found nothing to forward and slept. Waking a thread takes longer than anything else on a packet's path.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.Sleeps.Load() }},
	{counter("busy_poll_hits_total", "Times that a thread, looking again instead of sleeping, found a packet.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.SpinHits.Load() }},
	{counter("brief_batches_total", "Batches of a bulk transfer that were kept brief because another queue of the thread carried requests.", "shard", "direction"),
		func(d *metrics.Direction) uint64 { return d.BriefBatches.Load() }},
}

var directionHistograms = []struct {
	family
	read func(*metrics.Direction) *metrics.BatchSizes
}{
	{histogram("datagram_packets", "Packets in each UDP message: segments of a GSO send (tx) or of a GRO receive (rx).", "shard", "direction"),
		func(d *metrics.Direction) *metrics.BatchSizes { return &d.Segments }},
	{histogram("tun_batch_packets", "Packets in each super-packet read from the TUN device (tx) or written to it (rx).", "shard", "direction"),
		func(d *metrics.Direction) *metrics.BatchSizes { return &d.Merged }},
}

var shardCounters = []struct {
	family
	read func(*metrics.Shard) uint64
}{
	{counter("lookup_cache_hits_total", "Look-ups of a peer answered without the table of leases: by the last address or, before a large table, an LRU.", "shard"),
		func(s *metrics.Shard) uint64 { return s.CacheHits.Load() }},
	{counter("lookup_cache_misses_total", "Look-ups of a peer in the table of leases. Each change of a lease empties the caches in front of it.", "shard"),
		func(s *metrics.Shard) uint64 { return s.CacheMisses.Load() }},
	{counter("socket_overflow_datagrams_total", "Datagrams that the kernel dropped because the socket's receive buffer was full: this shard's thread gets too little CPU time.", "shard"),
		func(s *metrics.Shard) uint64 { return s.SocketOverflows.Load() }},
	{counter("filtered_messages_total", "UDP messages counted as unknown_peer that the kernel dropped before they reached a socket's queue (--stranger-filter). The first shard has the count for all shards.", "shard"),
		func(s *metrics.Shard) uint64 { return s.Filtered.Load() }},
	{counter("gso_fallbacks_total", "Times the kernel refused UDP GSO while running and it was turned off for the shard's socket.", "shard"),
		func(s *metrics.Shard) uint64 { return s.GSOFallbacks.Load() }},
	{counter("icmp_errors_sent_total", "ICMP errors (too big, unreachable) returned to local senders.", "shard"),
		func(s *metrics.Shard) uint64 { return s.ICMPSent.Load() }},
}

var dropped = counter("dropped_packets_total",
	"Packets not forwarded, each counted under one reason. On rx, unknown_peer and spoofed_source mean that an unknown host, or a peer that is not entitled to the address, sends to this node's UDP port.",
	"shard", "direction", "reason")

var buildInfo = gauge("build_info", "Always 1; the label is the version of the running binary.", "version")

// putter sends a sample of a metric.
type putter func(v float64, labels ...string)

// stateMetrics are read from the State. A metric without a value has no series.
var stateMetrics = []struct {
	family
	read func(*metrics.State, putter)
}{
	{gauge("ready", "1 if the node is ready: pods can reach those of other nodes. The same as /readyz."),
		func(st *metrics.State, put putter) { put(oneIf(st.Waiting == metrics.Ready)) }},
	{gauge("waiting", "1 for the reason why the node is not ready, 0 for the others. twill status has the details.", "reason"),
		func(st *metrics.State, put putter) {
			for w := metrics.Ready + 1; w < metrics.NumWaits; w++ {
				put(oneIf(st.Waiting == w), w.String())
			}
		}},

	{gauge("peers", "Other nodes that packets are sent to."),
		func(st *metrics.State, put putter) { put(float64(st.Peers)) }},
	{gauge("narrow_peers", "Other nodes to which packets are kept smaller than the device's MTU, because the path loses larger ones without an ICMP error. twill status names them."),
		func(st *metrics.State, put putter) { put(float64(st.Narrow)) }},
	{gauge("leases", "Leases in force, including the node's own."),
		func(st *metrics.State, put putter) { put(float64(st.Leases)) }},

	{gauge("lease_source_up", "1 while the lease source answers, 0 while it does not or refuses this node. The last known leases stay in force."),
		func(st *metrics.State, put putter) { put(oneIf(st.Source.Away == 0)) }},
	{gauge("lease_source_away_seconds", "For how long the lease source has not answered or has refused this node; 0 while it answers. The last known leases stay in force."),
		func(st *metrics.State, put putter) { put(st.Source.Away.Seconds()) }},
	{gauge("lease_source_ok", "1 if the newest version of the lease source is in force; 0 while it is invalid and the last valid one stays in force. The log and twill status say why."),
		func(st *metrics.State, put putter) { put(oneIf(st.Source.OK)) }},
	{gauge("lease_watch_up", "1 while changes of the leases reach this node as they happen, 0 while the watch is interrupted or has not started."),
		func(st *metrics.State, put putter) { put(oneIf(st.Source.Watched)) }},
	{gauge("lease_source_updated_timestamp_seconds", "When the last good update of the leases arrived, as Unix time. In a quiet cluster that may be long ago."),
		func(st *metrics.State, put putter) { putTime(put, st.Source.Updated) }},
	{gauge("lease_expiry_timestamp_seconds", "When this node's lease expires unless it is renewed, as Unix time. There is no series for a lease that does not expire, as in Kubernetes and in a file."),
		func(st *metrics.State, put putter) { putTime(put, st.LeaseExpiry) }},

	{gauge("rules_in_force", "1 if the firewall rules were correct when last checked, 0 if they could not be written. twill status says why."),
		func(st *metrics.State, put putter) {
			if st.Rules != nil {
				put(oneIf(st.Rules.InForce))
			}
		}},
	{counter("rules_writes_total", "Times the firewall rules differed from the wanted ones and were written. It grows while another program removes them."),
		func(st *metrics.State, put putter) {
			if st.Rules != nil {
				put(float64(st.Rules.Writes))
			}
		}},
	{gauge("rules_checked_timestamp_seconds", "When the firewall rules were last found to be correct, as Unix time."),
		func(st *metrics.State, put putter) {
			if st.Rules != nil {
				putTime(put, st.Rules.Checked)
			}
		}},

	{gauge("device_info", "Always 1; the labels say which device runs (kind offload: a TUN device with super-packets, kind plain: one packet per read, kind vxlan and host-gw: the kernel's) and why.",
		"device", "kind", "reason"),
		func(st *metrics.State, put putter) {
			if d := st.Device; d.Kind != "" {
				put(1, d.Name, d.Kind, d.Reason)
			}
		}},
	{gauge("backend_info", "Always 1; the labels say which backend is configured, which one this node prefers, and why.",
		"configured", "backend", "reason"),
		func(st *metrics.State, put putter) {
			if b := st.Backend; b.Configured != "" {
				put(1, b.Configured, b.Backend, b.Reason)
			}
		}},
	{counter("backend_packets_total", "Packets of pods by the backend that carried them: udp is user space, udp-kernel the kernel path, vxlan what the kernel counts on the VXLAN devices (a super-packet counts once). Plain routes (host-gw) use the interface of the host, where they cannot be distinguished.",
		"backend", "direction"), putFlows(func(f *metrics.Flow) uint64 { return f.Packets })},
	{counter("backend_bytes_total", "Bytes of these packets, encapsulation not included.",
		"backend", "direction"), putFlows(func(f *metrics.Flow) uint64 { return f.Bytes })},
	{counter("backend_dropped_packets_total", "Packets of pods that the backend dropped; of vxlan, drops and errors of its devices. The reasons of udp are in twill_dropped_packets_total.",
		"backend", "direction"), putFlows(func(f *metrics.Flow) uint64 { return f.Dropped })},
	{counter("data_plane_restarts_total", "Times the data plane was closed and opened again while the daemon ran, which takes milliseconds, by cause: its device was deleted, or the interface, the lease or the backends changed.",
		"cause"),
		func(st *metrics.State, put putter) {
			for r, n := range st.Restarts {
				put(float64(n), metrics.Restart(r).String())
			}
		}},
	{gauge("offload_enabled", "1 if the kernel offload is active on every shard, 0 if it is turned off or was refused; twill status says why.",
		"offload"),
		func(st *metrics.State, put putter) {
			for name, inForce := range st.Offloads {
				put(oneIf(inForce), name)
			}
		}},
}

// putFlows returns a function that sends one number for each backend and direction.
func putFlows(read func(*metrics.Flow) uint64) func(*metrics.State, putter) {
	return func(st *metrics.State, put putter) {
		for i := range st.Traffic {
			t := &st.Traffic[i]
			put(float64(read(&t.TX)), t.Backend, "tx")
			put(float64(read(&t.RX)), t.Backend, "rx")
		}
	}
}

// putTime sends t in Prometheus's form, unless it is zero.
func putTime(put putter, t time.Time) {
	if !t.IsZero() {
		put(float64(t.UnixMilli()) / 1000)
	}
}

// oneIf returns Prometheus's form of a boolean.
func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
