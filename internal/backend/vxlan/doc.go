// Package vxlan is the device of flannel's vxlan backend, and what the kernel
// must know of the peers to use it.
//
// The kernel carries the packets. Three entries a peer tell it the way:
//
//	packet to 10.5.2.7
//	   │ route       10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink   (the caller's)
//	   ▼
//	 10.5.2.0
//	   │ neighbour   10.5.2.0 → VtepMAC of the peer
//	   ▼
//	 8e:3b:…:07
//	   │ FDB         VtepMAC → public address of the peer
//	   ▼
//	 192.0.2.12, UDP port 8472
//
// All of it stays when the process ends, and is found again at the next start,
// whether twill or stock flannel has made it: what is right already is not
// written again. What somebody takes away meanwhile, [Device.Run] puts back.
//
// The entries that belong to this package are told from those of others by
// their form, for nothing else outlives a process:
//
//   - A neighbour of the device is ours if it is permanent and its address is
//     that of a subnet of the network: no host bits, by the length of the
//     subnet of this node.
//   - An FDB entry of the device is ours if it is permanent and its MAC is, or
//     was since the start, that of a neighbour of ours.
//   - An address of the device is ours if it is a single one (/32, /128) inside
//     the networks.
//
// Everything else stays as it is, such as an FDB entry of an operator for
// 00:00:00:00:00:00 or for a MAC of which no neighbour speaks.
package vxlan
