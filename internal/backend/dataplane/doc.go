// Package dataplane carries the packets of a node's pods to all other nodes, to
// each by the best path that both nodes support:
//
//	peer on the link, DirectRouting   plain route through its address
//	both have VXLAN                   route through flannel.VNI (internal/backend/vxlan)
//	both have the udp backend         route through flannel0 (internal/backend/udp)
//	one has plain routes only         plain route, if the peer is on the link
//
// IPv4 and IPv6 are decided separately by the same rules. Each subnet of a peer
// has one route, in one table (internal/host/keep), so when a peer changes its
// backend, one route is replaced.
//
// A node announces the paths it supports in its lease: BackendType is what
// stock flannel reads, and "Backends" in BackendData is the full list if there
// are several. A stock node supports only the path that its BackendType names.
package dataplane
