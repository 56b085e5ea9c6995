// Package rules maintains flannel's firewall rules: packets that leave the pod
// network are masqueraded (--ip-masq), and packets of the pod network are
// forwarded (--iptables-forward-rules).
//
// The rules and their order are exactly flannel's (v0.28.9, pkg/trafficmngr),
// so twilld takes over those of stock flannel without a write. With iptables
// they are, for each address family,
//
//	nat POSTROUTING  ── jump ──► FLANNEL-POSTRTG    return, return, …, masquerade
//	filter FORWARD   ── jump ──► FLANNEL-FWD        accept, accept
//
// and with nftables the chains postrtg and forward of the tables ip
// flannel-ipv4 and ip6 flannel-ipv6.
//
// The wanted rules are compared with the existing ones and only the difference
// is written, in one transaction for each table, so a packet meets either the
// old rules or the new ones. This package owns flannel's chains and tables,
// except for the rules that a second daemon keeps there for another network.
// Elsewhere it changes only rules that jump to its chains or carry flannel's
// comment.
//
// It runs the programs iptables, iptables-restore and nft in the network
// namespace of the calling thread.
package rules
