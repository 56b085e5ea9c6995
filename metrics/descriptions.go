package metrics

import "github.com/prometheus/client_golang/prometheus"

// Names and help texts of the metrics. Labels: shard is the number of the TUN
// queue and socket; direction is tx (pods to network) or rx (network to pods).

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("twill_"+name, help, labels, nil)
}

var directionCounters = []struct {
	desc *prometheus.Desc
	read func(*Direction) uint64
}{
	{desc("packets_total", "Pod packets forwarded. A TCP super-packet counts as the segments it is cut into.", "shard", "direction"),
		func(d *Direction) uint64 { return d.Packets.Load() }},
	{desc("bytes_total", "Bytes of the pod packets forwarded, IP header included, encapsulation not.", "shard", "direction"),
		func(d *Direction) uint64 { return d.Bytes.Load() }},
	{desc("datagrams_total", "UDP messages handed to (tx) or taken from (rx) the kernel. With UDP GSO and GRO one message carries many packets; packets divided by datagrams near 1 under load says that the offload is not in force.", "shard", "direction"),
		func(d *Direction) uint64 { return d.Datagrams.Load() }},
	{desc("tun_calls_total", "System calls that read (tx) or wrote (rx) the TUN device and moved something.", "shard", "direction"),
		func(d *Direction) uint64 { return d.TunCalls.Load() }},
	{desc("socket_calls_total", "sendmmsg (tx) or recvmmsg (rx) calls that moved something. Calls, not bytes, are what small packets cost.", "shard", "direction"),
		func(d *Direction) uint64 { return d.SockCalls.Load() }},
	{desc("sleeps_total", "Times that a thread found nothing to forward and slept. To be woken takes a packet longer than anything else on its way.", "shard", "direction"),
		func(d *Direction) uint64 { return d.Sleeps.Load() }},
	{desc("busy_poll_hits_total", "Times that a thread, looking again instead of sleeping, found a packet.", "shard", "direction"),
		func(d *Direction) uint64 { return d.SpinHits.Load() }},
}

var directionHistograms = []struct {
	desc *prometheus.Desc
	read func(*Direction) *BatchSizes
}{
	{desc("datagram_packets", "Packets in each UDP message: segments of a GSO send (tx) or of a GRO receive (rx).", "shard", "direction"),
		func(d *Direction) *BatchSizes { return &d.Segments }},
	{desc("tun_batch_packets", "Packets in each super-packet read from the TUN device (tx) or written to it (rx).", "shard", "direction"),
		func(d *Direction) *BatchSizes { return &d.Merged }},
}

var shardCounters = []struct {
	desc *prometheus.Desc
	read func(*Shard) uint64
}{
	{desc("lookup_cache_hits_total", "Look-ups of a peer answered without the table of leases: by the last address or, before a large table, an LRU.", "shard"),
		func(s *Shard) uint64 { return s.CacheHits.Load() }},
	{desc("lookup_cache_misses_total", "Look-ups of a peer in the table of leases. Each change of a lease empties what comes before it.", "shard"),
		func(s *Shard) uint64 { return s.CacheMisses.Load() }},
	{desc("socket_overflow_datagrams_total", "Datagrams that the kernel dropped because the socket's receive buffer was full: this shard's thread gets too little CPU time.", "shard"),
		func(s *Shard) uint64 { return s.SocketOverflows.Load() }},
	{desc("filtered_messages_total", "Of what is counted as unknown_peer, UDP messages that the kernel dropped before they reached a socket's queue (--stranger-filter). For all shards together, on the first.", "shard"),
		func(s *Shard) uint64 { return s.Filtered.Load() }},
	{desc("gso_fallbacks_total", "Times the kernel refused UDP GSO while running and it was turned off for the shard's socket.", "shard"),
		func(s *Shard) uint64 { return s.GSOFallbacks.Load() }},
	{desc("icmp_errors_sent_total", "ICMP errors (too big, unreachable) returned to local senders.", "shard"),
		func(s *Shard) uint64 { return s.ICMPSent.Load() }},
}

var (
	dropDesc = desc("dropped_packets_total",
		"Packets not forwarded, each under one reason. On rx, unknown_peer and spoofed_source mean that an unknown host, or a peer that is not entitled to the address, sends to this node's UDP port.",
		"shard", "direction", "reason")
	peersDesc  = desc("peers", "Other nodes that packets are sent to.")
	narrowDesc = desc("narrow_peers", "Other nodes to which packets are kept smaller than the device's MTU, because the path loses larger ones without an ICMP error. twill status names them.")
	leasesDesc = desc("leases", "Leases in force, the own one included.")
	sourceDesc = desc("lease_source_ok",
		"1 if the newest version of the lease source is in force; 0 while it is refused and the last good one stays. The log and twill status say why.")
	awayDesc = desc("lease_source_away_seconds",
		"For how long the lease source has not answered, or has refused this node; 0 if it answers. What was known stays in force.")
	backendDesc = desc("backend_info",
		"Always 1; the labels say which backend the network configuration, or --backend, asks for, which one this node takes first, and why.",
		"configured", "backend", "reason")
	deviceDesc = desc("device_info",
		"Always 1; the labels say which device runs (kind offload: a TUN device with super-packets, kind plain: one packet a read, kind vxlan and host-gw: the kernel's) and why.",
		"device", "kind", "reason")
	offloadDesc = desc("offload_enabled",
		"1 if the kernel offload is in force on every shard, 0 if it is turned off or was refused; twill status says why.",
		"offload")
)
