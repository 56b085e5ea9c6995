// Package fastpath is the engine: it moves packets between the queues of a TUN
// device and UDP sockets.
//
//	                    ┌──────────────── shard ────────────────┐
//	tun.Queue.Read ────▶│ tx: resolver → encap.Splitter → sends │────▶ sendmmsg, UDP_SEGMENT
//	tun.Queue.Write ◀───│ rx: encap.Coalescer ← check ← receiver│◀──── recvmmsg, UDP_GRO
//	                    └───────────────────────────────────────┘
//
// A shard is one TUN queue, one socket that receives and one that sends. A loop
// runs the tx, or the rx, of several shards on a locked thread that owns their
// buffers: each in turn drains what is ready, up to a batch, handles it and
// flushes. If none has anything to do, the thread either keeps polling for a while
// (spinner) or sleeps in poll(2) (waiter). Threads share the read-only peer
// snapshot (Peers); the only shared state they write is the counters and the
// coordination of spinners.
//
// The wire format is flannel's udp backend: one inner packet per datagram.
package fastpath
