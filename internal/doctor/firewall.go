package doctor

import (
	"cmp"
	"context"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// podOf returns the address of a pod in a subnet, the second after the subnet's
// own; the first is the bridge's.
func podOf(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next().Next() }

// forwardPolicy checks that FORWARD lets packets of pods through, both ways.
func (x *examination) forwardPolicy(ctx context.Context) []Finding {
	var found []Finding
	devices := x.devices()
	if len(devices) == 0 {
		devices = []string{""}
	}
	for _, f := range x.podFamilies() {
		rules, err := x.filter(ctx, f.program)
		if err != nil {
			found = append(found, warnf("", "%v", err))
			continue
		}
		own, other := podOf(f.subnet), podOf(sibling(f.subnet))
		var packets []Packet
		for _, d := range devices {
			packets = append(packets, Packet{In: d, Src: other, Dst: own}, Packet{Out: d, Src: own, Dst: other})
		}
		if in := x.kernelInput(); in != "" {
			packets = append(packets, Packet{In: in, Src: other, Dst: own})
		}
		for _, p := range packets {
			if dropped, ok := x.dropped(rules, p); ok {
				found = append(found, dropped)
				break // other findings would have the same cause
			}
		}
	}
	if len(found) == 0 {
		found = append(found, okf("packets of pods are accepted"))
	}
	return found
}

// filter returns the rules that drop packets, of iptables or ip6tables and of nftables.
func (x *examination) filter(ctx context.Context, program string) (*Firewall, error) {
	t, err := readChains(ctx, program, "filter")
	return &Firewall{filter: t, nft: x.nftables(ctx)}, err
}

// nftables returns the rules of nftables. It lists them once.
func (x *examination) nftables(ctx context.Context) ruleset {
	if x.ruleset == nil {
		r := readRuleset(ctx)
		x.ruleset = &r
	}
	return *x.ruleset
}

// masquerade checks that packets from pods to pods of other nodes keep their source.
// Docker and CNI plugins that masquerade on their own do not exempt other nodes' pods.
func (x *examination) masquerade(ctx context.Context) []Finding {
	var found []Finding
	for _, f := range x.podFamilies() {
		nat, err := readChains(ctx, f.program, "nat")
		if err != nil {
			found = append(found, warnf("", "%v", err))
			nat = parseChains(f.program, "")
		}
		rules := &Firewall{nat: nat, nft: x.nftables(ctx)}
		p := Packet{Src: podOf(f.subnet), Dst: podOf(sibling(f.subnet))}
		for _, p.Out = range append(x.devices(), "") {
			if v := rules.Source(p); !v.Accept {
				found = append(found, v.qualified(warnf(v.Remedy, "packets from %s to %s get this node's address, which hides their source from pods of other nodes: %s", p.Src, p.Dst, v.Rule)))
				break // other devices would have the same cause
			}
		}
	}
	if len(found) == 0 {
		found = append(found, okf("packets to pods of other nodes keep their source"))
	}
	return found
}

// podFamily is a family in which this node and others have pods.
type podFamily struct {
	program         string // the program that lists the rules
	network, subnet netip.Prefix
}

func (x *examination) podFamilies() []podFamily {
	all := []podFamily{{"iptables", x.Env.Network, x.Env.Subnet}, {"ip6tables", x.Env.IPv6Network, x.Env.IPv6Subnet}}
	return slices.DeleteFunc(all, func(f podFamily) bool { return !f.subnet.IsValid() || f.subnet.Bits() <= f.network.Bits() })
}

// dropped reports whether FORWARD drops a packet, and why.
func (x *examination) dropped(rules *Firewall, p Packet) (Finding, bool) {
	switch v := rules.Forward(p); {
	case v.Accept:
		return Finding{}, false
	case v.Rule != policyDrop("FORWARD"):
		return v.qualified(badf(v.Remedy, "packets from %s to %s are dropped in FORWARD by %s", p.Src, p.Dst, v.Rule)), true
	case x.wanted().Forward && !x.wanted().NFTables:
		return v.qualified(badf("systemctl restart twilld", "the policy of FORWARD is DROP, and flannel's rule that accepts packets from %s to %s is missing", p.Src, p.Dst)), true
	default:
		return v.qualified(badf(v.Remedy, "the policy of FORWARD is DROP, and no rule accepts packets from %s to %s", p.Src, p.Dst)), true
	}
}

// qualified returns f, the finding for a packet that is not accepted, as a warning if that is
// uncertain.
func (v Verdict) qualified(f Finding) Finding {
	if v.Unless != "" {
		f.Level = Warn
		f.Text += ", unless an earlier rule decides: " + v.Unless
	}
	return f
}

// sibling returns the other half of the prefix that is one bit shorter than a subnet.
// In a network of several nodes it belongs to another node.
func sibling(subnet netip.Prefix) netip.Prefix {
	b := subnet.Masked().Addr().AsSlice()
	last := subnet.Bits() - 1
	b[last/8] ^= 0x80 >> (last % 8)
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes
	return netip.PrefixFrom(a, subnet.Bits())
}

// gate is a UDP port at which datagrams of peers arrive.
type gate struct {
	program string // the program for their family
	port    int
}

// gates returns the ports, with source addresses, whose reachability no ping through
// the tunnel has proven. proven reports whether there are others.
func (x *examination) gates(ctx context.Context) (from map[gate][]netip.Addr, proven bool) {
	from = map[gate][]netip.Addr{}
	r, err := x.reach(ctx) // the check of the peers reports an error
	paths := x.paths()
	for _, p := range paths {
		switch {
		case p.port == 0:
		case err == nil && r.tunnel && r.answered(p):
			proven = true
		default:
			g := gate{"iptables", p.port}
			if p.public.Is6() {
				g.program = "ip6tables"
			}
			from[g] = append(from[g], p.public)
		}
	}
	if len(paths) == 0 {
		for _, w := range x.backends() {
			if port := x.portOf(w); port != 0 {
				from[gate{"iptables", port}] = []netip.Addr{{}} // from any address
			}
		}
	}
	return from, proven
}

// udpPort checks whether this node admits datagrams of peers. If pings through the
// tunnel are answered, it does, regardless of its rules. The rules are read if
// there is nothing to ping yet, and to name the rule that drops.
func (x *examination) udpPort(ctx context.Context) []Finding {
	from, proven := x.gates(ctx)
	switch {
	case len(from) == 0 && proven:
		return []Finding{okf("datagrams from peers arrive: pings through the tunnel are answered")}
	case len(from) == 0:
		return []Finding{okf("plain routes need no port")}
	}
	p := Packet{Proto: "udp"}
	if x.Daemon != nil && x.Daemon.Underlay != nil {
		p.In = x.Daemon.Underlay.Name
	}
	byPort := func(a, b gate) int { return cmp.Or(cmp.Compare(a.program, b.program), cmp.Compare(a.port, b.port)) }
	var found []Finding
	var ports []string
	for _, g := range slices.SortedFunc(maps.Keys(from), byPort) {
		rules, err := x.filter(ctx, g.program)
		if err != nil {
			found = append(found, warnf("", "%v", err))
			continue
		}
		if port := strconv.Itoa(g.port); !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
		p.Port = g.port
		for _, p.Src = range from[g] {
			if closed, ok := closed(rules, p); ok {
				found = append(found, closed)
				break // one remedy covers all
			}
		}
	}
	if len(found) == 0 {
		found = append(found, okf("iptables and nftables on this node accept datagrams to port %s", strings.Join(ports, " and ")))
	}
	return found
}

// closed reports whether INPUT drops a datagram, and why.
func closed(rules *Firewall, p Packet) (Finding, bool) {
	v := rules.Input(p)
	if v.Accept {
		return Finding{}, false
	}
	from := "peers"
	if p.Src.IsValid() {
		from = p.Src.String()
	}
	return v.qualified(badf(v.Remedy, "%s drops datagrams from %s to UDP port %d", v.Rule, from, p.Port)), true
}
