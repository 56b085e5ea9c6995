// Package netlab makes hosts, wires and pods out of Linux network namespaces,
// for tests and for the laboratory. It needs root, and nft(8) for
// [Options.Loss], but no other program.
//
// The smallest topology, two hosts with a pod each:
//
//	  pod-a                    host a                         host b                    pod-b
//	┌───────────┐   ┌───────────────────────┐   wire   ┌───────────────────────┐   ┌───────────┐
//	│ eth0 ─────┼───┼─ veth0 ─ cni0    eth0 ┼──────────┼ eth0    cni0 ─ veth0 ─┼───┼───── eth0 │
//	└───────────┘   └───────────────────────┘          └───────────────────────┘   └───────────┘
//	 10.5.1.2/24     10.5.1.1/24  172.31.9.11/24        172.31.9.12/24  10.5.2.1/24  10.5.2.2/24
//	 fd00:10:5:1::2  …:1::1   fd00:172:31:9::11         fd00:172:31:9::12  …:2::1  fd00:10:5:2::2
//
// Two hosts share one veth pair. With more hosts, with a [Relay], or with loss,
// each eth0 leads into an additional namespace, the wire:
//
//	host a                   wire                     host b
//	 eth0 ─────── port-a ─ bridge br0 ─ port-b ─────── eth0
//	                      or Relay
//
// There are no routes for the pod networks between hosts: the path under test
// adds them, for example a daemon, [Topology.AddVXLAN] or [Topology.AddHostGW].
//
// Namespaces are held only by a file descriptor and by threads of this process,
// so the kernel removes them, with everything in them, however the
// process ends. [Options.NamePrefix] gives them names under /run/netns instead.
package netlab
