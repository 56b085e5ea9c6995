// Package kernelpath carries packets of the udp backend in the kernel, between nodes that
// both have the kernel path: a BPF program on the TUN device encapsulates, another on the
// underlay interface decapsulates, and neither copies a packet to user space. bpf/path.c
// describes the path of a packet.
//
// The programs handle only packets that they can treat exactly as the engine in user
// space (package fastpath) would. The engine gets all others: those of peers without
// the kernel path, those that are too large for the path to their peer, and those that
// must not be admitted.
//
// Programs, maps and devices outlive the process: pods of nodes with this path stay
// connected while no daemon runs, and the next one takes over what it finds.
package kernelpath
