// Package rules keeps the firewall rules that flannel's users expect of it:
// packets that leave the pod network are masqueraded (--ip-masq), packets of
// the pod network are forwarded (--iptables-forward-rules).
//
// The rules are flannel's own to the letter and in its order (v0.28.9,
// pkg/trafficmngr), so that twilld takes over what stock flannel has left without
// a write. With iptables they are, for each address family,
//
//	nat POSTROUTING  ── jump ──► FLANNEL-POSTRTG    return, return, …, masquerade
//	filter FORWARD   ── jump ──► FLANNEL-FWD        accept, accept
//
// and with nftables the chains postrtg and forward of the tables ip
// flannel-ipv4 and ip6 flannel-ipv6.
//
// What is wanted is compared with what is there, and only the difference is
// written, in one transaction for each table: a packet meets the rules of
// before or those of after. What is in flannel's chains and tables is this
// package's to change, but for the rules of another network that a second daemon
// keeps there. Outside of them it touches rules that jump into its chains or carry
// flannel's comment, and no other.
//
// All work is done by the programs iptables, iptables-restore and nft, in the
// network namespace of the calling thread.
package rules
