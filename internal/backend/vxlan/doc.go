// Package vxlan describes what flannel's vxlan backend needs in the kernel: a
// VXLAN device, and the entries for each peer.
//
// The kernel carries the packets. Three entries for each peer determine where
// they go:
//
//	packet to 10.5.2.7
//	   │ route       10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink
//	   ▼
//	 10.5.2.0
//	   │ neighbour   10.5.2.0 → VtepMAC of the peer
//	   ▼
//	 8e:3b:…:07
//	   │ FDB         VtepMAC → public address of the peer
//	   ▼
//	 192.0.2.12, UDP port 8472
//
// The device and the entries are values of package keep, which installs them.
// They are identical to stock flannel's, so a node may switch from one program
// to the other and back without interrupting the traffic of its pods.
package vxlan
