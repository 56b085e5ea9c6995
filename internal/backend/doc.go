// Package backend carries the packets of a node's pods to all other nodes, to
// each by the best way that both know:
//
//	peer on the link, DirectRouting   plain route through its address
//	both have VXLAN                   route through flannel.VNI (internal/backend/vxlan)
//	both have the udp backend         route through flannel0 (internal/backend/udp)
//	one has plain routes only         plain route, if it is on the link
//
// IPv4 and IPv6 are decided apart, by the same rules, and there is one route for
// each subnet of a peer, in one table (internal/host/routes): a peer that changes its
// backend is one route replaced.
//
// Which ways a node knows is in its lease: BackendType is what stock flannel
// looks at, "Backends" in BackendData is the whole list where there are several.
// A stock node knows the one way that its BackendType names.
package backend
