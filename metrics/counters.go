// Package metrics counts what the data plane does; package prom exports it to Prometheus.
// It is a leaf: every package may import it, and it imports no other package of twill.
//
// Counters are plain atomics that one goroutine writes and any number read.
// The forwarding loops add to them once per batch or per run of packets, not
// once per packet, so that counting costs nothing that can be measured.
package metrics

import "sync/atomic"

// Drop is the reason why a packet was not forwarded. Each dropped packet is
// counted under exactly one reason.
type Drop uint8

const (
	// DropMalformed: not a well-formed IPv4 or IPv6 packet, or its length
	// field disagrees with what was read or received.
	DropMalformed Drop = iota
	// DropUnknownPeer: the datagram's source is not the public address of a peer.
	DropUnknownPeer
	// DropSpoofedSource: the inner source is not in the sending peer's subnets.
	DropSpoofedSource
	// DropForeignDestination: the inner destination is not in this node's subnets.
	DropForeignDestination
	// DropNoRoute: no peer holds the inner destination.
	DropNoRoute
	// DropTooBig: the packet does not fit the path to its peer; its sender
	// was sent an ICMP error if the packet allows one.
	DropTooBig
	// DropCongestion: the outer header has the ECN mark "congestion experienced",
	// but the inner header is not ECN-capable (RFC 6040 §4.2).
	DropCongestion
	// DropTruncated: the datagram or its control message did not fit the
	// receive slot.
	DropTruncated
	// DropNoBuffer: the kernel had no room (ENOBUFS, ENOMEM) after retries.
	DropNoBuffer
	// DropSendError: the kernel refused to send to this peer for another
	// reason (unreachable, filtered).
	DropSendError
	// DropDeviceError: the TUN device refused the packet.
	DropDeviceError
	// NumDrops is the number of reasons.
	NumDrops
)

var dropNames = [NumDrops]string{
	DropMalformed:          "malformed",
	DropUnknownPeer:        "unknown_peer",
	DropSpoofedSource:      "spoofed_source",
	DropForeignDestination: "foreign_destination",
	DropNoRoute:            "no_route",
	DropTooBig:             "too_big",
	DropCongestion:         "congestion",
	DropTruncated:          "truncated",
	DropNoBuffer:           "no_buffer",
	DropSendError:          "send_error",
	DropDeviceError:        "device_error",
}

// String returns the reason as it appears in the metric's "reason" label.
func (d Drop) String() string {
	if d < NumDrops {
		return dropNames[d]
	}
	return "unknown"
}

// Direction holds the counters of one direction of one shard: TX is from the
// TUN device to the network, RX from the network to the TUN device.
type Direction struct {
	Packets   atomic.Uint64 // inner packets forwarded
	Bytes     atomic.Uint64 // bytes of these inner packets, IP header included
	Datagrams atomic.Uint64 // UDP messages passed to or received from the kernel; with GSO/GRO one carries many packets
	TunCalls  atomic.Uint64 // reads (TX) or writes (RX) of the TUN device that moved something
	SockCalls atomic.Uint64 // sendmmsg (TX) or recvmmsg (RX) calls that moved something
	Sleeps    atomic.Uint64 // times the thread found nothing and slept
	SpinHits  atomic.Uint64 // times it found something while polling again instead of sleeping
	// BriefBatches counts the batches that were kept short because another queue of the
	// same thread carried requests.
	BriefBatches atomic.Uint64
	Segments     BatchSizes // packets in each GSO send (TX) or GRO receive (RX)
	Merged       BatchSizes // TX: packets in each super-packet read; RX: in each TUN write
	Drops        [NumDrops]atomic.Uint64
}

// Drop counts n packets dropped for the reason d.
func (c *Direction) Drop(d Drop, n int) { c.Drops[d].Add(uint64(n)) }

// Shard holds the counters of one shard: one TUN queue, one socket that receives
// and one that sends. The kernel path is counted as one more shard.
// The two directions are written by different threads and are padded so that
// they do not share a cache line.
type Shard struct {
	// Name is the label in metrics; empty: the number of the shard.
	Name string

	TX Direction
	_  [64]byte
	RX Direction
	_  [64]byte

	CacheHits       atomic.Uint64 // destination and source look-ups answered by the last address or the LRU
	CacheMisses     atomic.Uint64 // look-ups in the table of leases
	SocketOverflows atomic.Uint64 // datagrams that the kernel dropped because the receive buffer was full (SO_RXQ_OVFL)
	Filtered        atomic.Uint64 // messages that a filter in the kernel dropped, also counted under DropUnknownPeer; the first shard has the count of all
	GSOFallbacks    atomic.Uint64 // times the kernel refused UDP GSO at run time and it was disabled
	ICMPSent        atomic.Uint64 // ICMP errors returned to local senders
}

// Traffic counts the traffic sent to and received from one peer.
type Traffic struct {
	TXPackets, TXBytes atomic.Uint64
	_                  [64]byte
	RXPackets, RXBytes atomic.Uint64
}

// batchBounds are the upper bounds of the buckets of BatchSizes; the last
// bucket has none. 128 is UDP_MAX_SEGMENTS of Linux 6.9 and newer.
var batchBounds = [...]int{1, 2, 4, 8, 16, 32, 64, 128}

// BatchSizes is a histogram of batch sizes in packets.
type BatchSizes struct {
	buckets [len(batchBounds) + 1]atomic.Uint64
	sum     atomic.Uint64
}

// Observe counts one batch of n packets.
func (h *BatchSizes) Observe(n int) {
	i := 0
	for i < len(batchBounds) && n > batchBounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(uint64(n))
}

// Snapshot returns the number of batches, the packets in them, and the
// cumulative count at each upper bound, in the form that Prometheus expects.
func (h *BatchSizes) Snapshot() (count, sum uint64, cumulative map[float64]uint64) {
	cumulative = make(map[float64]uint64, len(batchBounds))
	for i := range h.buckets {
		count += h.buckets[i].Load()
		if i < len(batchBounds) {
			cumulative[float64(batchBounds[i])] = count
		}
	}
	return count, h.sum.Load(), cumulative
}
