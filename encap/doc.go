// Package encap knows what a packet becomes on its way to another host.
//
// A packet that leaves travels
//
//	super-packet (TUN) → Splitter → inner packets → one UDP payload each
//
// and one that arrives
//
//	UDP payloads → Parse → Coalescer → super-packets (TUN)
//
// The wire format is that of flannel's udp backend: the payload of a datagram
// is one inner IPv4 or IPv6 packet and nothing else.
//
// Everything here is pure: no I/O, no clocks, no locks, no allocation after a
// constructor has returned. Functions that rewrite a packet do so in place or
// into memory of the caller. The backends, which know devices and sockets, are
// the subpackages.
//
// Glossary: a super-packet is a TCP or UDP packet of up to 64 KiB that stands
// for many (Linux GSO); its segments are the packets it stands for; a run is
// what the Coalescer makes of consecutive packets of one flow.
package encap
