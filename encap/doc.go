// Package encap implements what happens to a packet on its way to another host.
//
// An outgoing packet travels
//
//	super-packet (TUN) → Splitter → inner packets → one UDP payload each
//
// and an incoming one
//
//	UDP payloads → Parse → Coalescer → super-packets (TUN)
//
// The wire format is that of flannel's udp backend: the payload of a datagram
// is exactly one inner IPv4 or IPv6 packet.
//
// Everything here is pure: no I/O, no clocks, no locks, no allocation after a
// constructor has returned. Functions that rewrite a packet do so in place or
// into memory supplied by the caller. Devices and sockets belong to
// other packages.
//
// Glossary: a super-packet is a TCP or UDP packet of up to 64 KiB that represents
// many packets (Linux GSO); its segments are those packets; a run is what the
// Coalescer makes of consecutive packets of one flow.
package encap
