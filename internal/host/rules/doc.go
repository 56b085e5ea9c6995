// Package rules maintains the firewall rules of flannel: packets that leave the pod
// network are masqueraded (--ip-masq), packets of the pod network are forwarded
// (--iptables-forward-rules).
//
// Rules and order are exactly flannel's (v0.28.9, pkg/trafficmngr), so twilld takes
// over those of stock flannel without a write. With iptables they are, for each
// address family,
//
//	nat POSTROUTING  ── jump ──► FLANNEL-POSTRTG    return, return, …, masquerade
//	filter FORWARD   ── jump ──► FLANNEL-FWD        accept, accept
//
// and with nftables the chains postrtg and forward of the tables ip
// flannel-ipv4 and ip6 flannel-ipv6.
//
// The wanted rules are compared with the existing ones and only the difference is
// written, in one transaction for each table: a packet meets either the old rules or
// the new ones. Flannel's chains and tables are this package's to change, except the
// rules of another network that a second daemon keeps there. Elsewhere it changes only
// rules that jump into its chains or carry flannel's comment.
//
// The programs iptables, iptables-restore and nft do the work, in the network
// namespace of the calling thread.
package rules
