package fastpath

import "github.com/twillnet/twill/tun"

// Switches select which offloads to use. The zero value sets all of them to
// automatic. SwitchFlags lists their names and what each does.
type Switches struct {
	TunOffload       tun.Switch // for tun.Config: an engine uses the device as it was opened
	TunGRO           tun.Switch
	TunGROUDP        tun.Switch
	UDPGSO           tun.Switch
	UDPGRO           tun.Switch
	PartialChecksums tun.Switch
	SourcePorts      tun.Switch
	StrangerFilter   tun.Switch
	BusyPoll         tun.Switch
	BriefBatches     tun.Switch
	BulkQueue        tun.Switch
	MTUProbes        tun.Switch
}

// SwitchFlag describes one of the Switches as a command-line flag. Engine.Offloads
// reports a tun.Offload with the same name.
type SwitchFlag struct {
	Name  string // without dashes
	Help  string
	Field func(*Switches) *tun.Switch
}

const (
	// tunOffload is the name of the switch that is resolved when the device is
	// opened.
	tunOffload     = "tun-offload"
	strangerFilter = "stranger-filter"
)

// SwitchFlags are the flags of all Switches, in the order of Engine.Offloads.
var SwitchFlags = []SwitchFlag{
	{tunOffload,
		"exchange super-packets and partial checksums with the kernel on the TUN device; on: do not start without them",
		func(s *Switches) *tun.Switch { return &s.TunOffload }},
	{"tun-gro",
		"join received TCP segments of a flow before they are written to the TUN device",
		func(s *Switches) *tun.Switch { return &s.TunGRO }},
	{"tun-gro-udp",
		"as --tun-gro, for UDP datagrams; off: a raw socket or a capture in a pod sees each datagram as it was sent",
		func(s *Switches) *tun.Switch { return &s.TunGROUDP }},
	{"udp-gso",
		"many datagrams in one send (UDP_SEGMENT)",
		func(s *Switches) *tun.Switch { return &s.UDPGSO }},
	{"udp-gro",
		"many datagrams in one receive (UDP_GRO)",
		func(s *Switches) *tun.Switch { return &s.UDPGRO }},
	{"partial-checksums",
		"announce in the lease that this node accepts packets whose TCP or UDP checksum is left to that of the datagram, and send such packets to peers that announce the same",
		func(s *Switches) *tun.Switch { return &s.PartialChecksums }},
	{"source-ports",
		"four queues and sockets for each pair of threads, each with a UDP source port of its own, so that one flow does not hold up the others; off: send from the Port of the network's Backend, as flannel does",
		func(s *Switches) *tun.Switch { return &s.SourcePorts }},
	{strangerFilter,
		"have the kernel drop datagrams of hosts without a lease before they take room in the sockets' queues; only with --source-check=strict",
		func(s *Switches) *tun.Switch { return &s.StrangerFilter }},
	{"busy-poll",
		"poll for the next packet for up to 150 µs before sleeping, except during a bulk transfer: lower latency for more CPU time; auto: with two or more CPUs",
		func(s *Switches) *tun.Switch { return &s.BusyPoll }},
	{"brief-batches",
		"forward a bulk transfer in brief batches while another queue of the thread carries requests, so that these wait less; auto: with two or more queues per thread",
		func(s *Switches) *tun.Switch { return &s.BriefBatches }},
	{"bulk-queue",
		"move TCP flows that are bulk transfers to a queue and source port of their own, so that requests do not wait behind them; packets of a flow may be reordered when it is moved; auto: with two or more queues per thread",
		func(s *Switches) *tun.Switch { return &s.BulkQueue }},
	{"mtu-probes",
		"send an echo request of full size to each peer in use every ten seconds, to find paths that lose large packets without an ICMP error, and limit the size of packets to these peers",
		func(s *Switches) *tun.Switch { return &s.MTUProbes }},
}
