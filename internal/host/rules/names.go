package rules

import (
	"net/netip"

	goiptables "github.com/coreos/go-iptables/iptables"
	"sigs.k8s.io/knftables"
)

// family is an address family with its names in the tools.
type family struct {
	name      string // for messages, and part of EnableIPv4 and EnableIPv6
	bits      int    // length of an address
	multicast netip.Prefix

	iptables string              // the program
	protocol goiptables.Protocol // the same value for go-iptables
	legacy   string              // kernel file that lists the tables of legacy iptables

	nft   knftables.Family
	table string // flannel's table
}

var (
	ipv4 = family{
		name: "IPv4", bits: 32, multicast: netip.MustParsePrefix("224.0.0.0/4"),
		iptables: "iptables", protocol: goiptables.ProtocolIPv4, legacy: "ip_tables_names",
		nft: knftables.IPv4Family, table: "flannel-ipv4",
	}
	ipv6 = family{
		name: "IPv6", bits: 128, multicast: netip.MustParsePrefix("ff00::/8"),
		iptables: "ip6tables", protocol: goiptables.ProtocolIPv6, legacy: "ip6_tables_names",
		nft: knftables.IPv6Family, table: "flannel-ipv6",
	}
	families = []*family{&ipv4, &ipv6}
)

// holds reports whether p is a prefix of the family, and not the whole of it.
func (f *family) holds(p netip.Prefix) bool {
	return p.IsValid() && p.Addr().BitLen() == f.bits && p.Bits() > 0
}

// chain is one of flannel's chains with its names in the tools.
type chain struct {
	table   string // iptables table
	hook    string // iptables chain that jumps to it
	name    string
	comment string // the comment of every rule
	first   bool   // the jump to it comes first in its hook, not last
	// without describes a node that lacks the chain. If it is not empty, the chain is not
	// essential, so it is not a failure if the kernel or a tool does not support its rules.
	without string

	nft      string // its name in flannel's nftables table
	about    string // its comment in that table
	kind     knftables.BaseChainType
	at       knftables.BaseChainHook
	priority knftables.BaseChainPriority
	number   int // the same priority as a number, as nft lists it
}

var (
	masquerading = chain{
		table: "nat", hook: "POSTROUTING", name: "FLANNEL-POSTRTG", comment: "flanneld masq",
		nft: "postrtg", about: "chain to manage traffic masquerading by flannel",
		kind: knftables.NATType, at: knftables.PostroutingHook, priority: knftables.SNATPriority, number: 100,
	}
	forwarding = chain{
		table: "filter", hook: "FORWARD", name: "FLANNEL-FWD", comment: "flanneld forward",
		nft: "forward", about: "chain to accept flannel traffic",
		kind: knftables.FilterType, at: knftables.ForwardHook, priority: knftables.FilterPriority, number: 0,
	}
	// The chains of Guard, which stock flannel does not have. Their jumps come first,
	// before others accept the packets.
	guardForward = chain{
		table: "filter", hook: "FORWARD", first: true, name: "TWILL-GUARD-FWD", comment: "twilld guard forward",
		without: "pods can send to the tunnels of other nodes",
		nft:     "guard-forward", about: "chain to keep pods away from the tunnel of other nodes",
		kind: knftables.FilterType, at: knftables.ForwardHook, priority: knftables.FilterPriority, number: 0,
	}
	guardOutput = chain{
		table: "filter", hook: "OUTPUT", first: true, name: "TWILL-GUARD-OUT", comment: "twilld guard output",
		without: "local users can send to the tunnels of other nodes",
		nft:     "guard-output", about: "chain to keep local users away from the tunnel of other nodes",
		kind: knftables.FilterType, at: knftables.OutputHook, priority: knftables.FilterPriority, number: 0,
	}
	guardInput = chain{
		table: "filter", hook: "INPUT", first: true, name: "TWILL-GUARD-IN", comment: "twilld guard input",
		without: "pods can send to the VXLAN port of this node",
		nft:     "guard-input", about: "chain to keep pods away from the tunnel of this node",
		kind: knftables.FilterType, at: knftables.InputHook, priority: knftables.FilterPriority, number: 0,
	}
	// In this hook, before DNAT and routing, packets still have the interface on which they
	// arrived and the port to which they were sent.
	guardSpoofed = chain{
		table: "raw", hook: "PREROUTING", first: true, name: "TWILL-GUARD-SPOOF", comment: "twilld guard spoofed",
		without: "pods with CAP_NET_RAW can send to tunnels with forged addresses of other nodes",
		nft:     "guard-spoofed", about: "chain to keep forged addresses of nodes away from the tunnels",
		kind: knftables.FilterType, at: knftables.PreroutingHook, priority: knftables.RawPriority, number: -300,
	}
	chains = []*chain{&masquerading, &forwarding, &guardForward, &guardOutput, &guardInput, &guardSpoofed}
)
