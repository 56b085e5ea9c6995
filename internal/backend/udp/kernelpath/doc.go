// Package kernelpath carries the wire of the udp backend in the kernel, between nodes
// that both do: a BPF program on the TUN device encapsulates, another on the underlay
// interface decapsulates, and neither copies a packet to user space. bpf/path.c has the
// path of a packet.
//
// The programs take only packets with which they can do exactly what the engine in user
// space (package fastpath) would do. The engine gets all others: those of peers without
// this path, those that do not fit the path, those that must not be admitted.
//
// Programs, maps and devices outlive the process: pods of nodes with this path stay
// connected while no daemon runs, and the next one takes over what it finds.
package kernelpath
