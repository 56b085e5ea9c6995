// Package vxlan says what flannel's vxlan backend takes: a VXLAN device of the
// kernel, and what it must know of the peers.
//
// The kernel carries the packets. Three entries a peer tell it where to:
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
// Device and entries are values of package keep, which has the kernel have them.
// They are stock flannel's to the bit, so a node may change from one program to
// the other and back while its pods talk.
package vxlan
