package kernelpath

import "net/netip"

// Config describes what a Path connects.
type Config struct {
	Tun      string     // name of the TUN device
	Underlay string     // name of the underlay interface
	Local    netip.Addr // this node's address there
	Port     uint16     // the network's UDP port
	// SourcePorts are the ports that datagrams are sent from, at most 64: the
	// engine's, so that ICMP errors reach a socket. Empty: Port.
	SourcePorts []uint16

	pins   string // directory for pins; empty: nothing outlives Close
	clsact bool   // use a clsact filter even if the kernel has TCX
	room   uint32 // for peers; 0: as in bpf/maps.h
}

// Peer is another node.
type Peer struct {
	Endpoint   netip.Addr     // of its datagrams, IPv4
	Subnets    []netip.Prefix // of its pods
	Kernel     bool           // it announces the kernel path
	SourcePort uint16         // the only one to send from; 0: those of Config
	MTU        int            // size in bytes of the largest packet to carry to it; 0: whatever fits the path
}

// Traffic counts what the programs have carried for a peer since it became a peer.
type Traffic struct {
	TXPackets, TXBytes, RXPackets, RXBytes uint64 // of inner packets; segments of a super-packet count
	TXDropped, RXDropped                   uint64 // the kernel had no memory for changing the headers
}

// Since returns what was counted since earlier. Counters that are lower than earlier's
// have started over, because the peer was removed and added again.
func (t Traffic) Since(earlier Traffic) Traffic {
	if t.TXPackets < earlier.TXPackets || t.RXPackets < earlier.RXPackets {
		return t
	}
	return Traffic{
		TXPackets: t.TXPackets - earlier.TXPackets, TXBytes: t.TXBytes - earlier.TXBytes,
		RXPackets: t.RXPackets - earlier.RXPackets, RXBytes: t.RXBytes - earlier.RXBytes,
		TXDropped: t.TXDropped - earlier.TXDropped, RXDropped: t.RXDropped - earlier.RXDropped,
	}
}
