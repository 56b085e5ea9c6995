// Package fastpath is the engine: it moves packets between the queues of a TUN
// device and UDP sockets.
//
//	                    ┌──────────────── shard ────────────────┐
//	tun.Queue.Read ────▶│ tx: resolver → encap.Splitter → sends │────▶ sendmmsg, UDP_SEGMENT
//	tun.Queue.Write ◀───│ rx: encap.Coalescer ← check ← receiver│◀──── recvmmsg, UDP_GRO
//	                    └───────────────────────────────────────┘
//
// A shard is one TUN queue and one socket. Each of its two directions runs on a
// locked thread that owns its buffers; the directions share the read-only peer
// snapshot (Peers) and nothing that is written. A direction drains what is
// ready, handles it, flushes, and sleeps in poll(2).
//
// The wire format is flannel's udp backend: one inner packet a datagram.
package fastpath
