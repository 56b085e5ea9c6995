package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
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
		t, err := readChains(ctx, f.program, "filter")
		if err != nil {
			found = append(found, warnf("", "%v", err))
			continue
		}
		own, other := podOf(f.subnet), podOf(sibling(f.subnet))
		var packets []packet
		for _, d := range devices {
			packets = append(packets, packet{in: d, src: other, dst: own}, packet{out: d, src: own, dst: other})
		}
		if in := x.kernelInput(); in != "" {
			packets = append(packets, packet{in: in, src: other, dst: own})
		}
		for _, p := range packets {
			if dropped, ok := x.dropped(t, p); ok {
				found = append(found, dropped)
				break // other findings would have the same cause
			}
		}
	}
	found = append(found, dropHooks(ctx, "forward")...)
	if len(found) == 0 {
		found = append(found, okf("lets packets of pods through"))
	}
	return found
}

// masquerade checks that packets from pods to pods of other nodes keep their source.
// Docker and CNI plugins that masquerade on their own do not exempt other nodes' pods.
func (x *examination) masquerade(ctx context.Context) []Finding {
	var found []Finding
	nft := readRuleset(ctx)
	for _, f := range x.podFamilies() {
		p := packet{src: podOf(f.subnet), dst: podOf(sibling(f.subnet)), unmarked: true}
		devices := append(x.devices(), "")
		if nft != nil {
			for _, p.out = range devices {
				if rule, ok := nft.translator(p); ok {
					found = append(found, rule.translates(p))
					break // other devices would have the same cause
				}
			}
		}
		t, err := readChains(ctx, f.program, "nat")
		if err != nil {
			found = append(found, warnf("", "%v", err))
			continue
		}
		for _, p.out = range devices {
			if to := t.passes("POSTROUTING", p); to.translated() {
				found = append(found, translatedBy(t, to, p))
				break
			}
		}
	}
	if len(found) == 0 {
		found = append(found, okf("packets to pods of other nodes keep their source"))
	}
	return found
}

// translatedBy returns the finding for a packet whose source a rule translates.
func translatedBy(t *table, to fate, p packet) Finding {
	found := hidden(p, t.program+" -t nat -D"+strings.TrimPrefix(to.rule, "-A"), to.rule)
	if len(to.maybe) > 0 {
		found.Text += ", unless it is decided before: " + to.maybe[0]
	}
	return found
}

// translates returns the same finding for a rule of nftables.
func (r nftRule) translates(p packet) Finding {
	return hidden(p, r.delete(), r.String())
}

// hidden returns the finding for a packet that gets another source by a rule.
func hidden(p packet, remedy, rule string) Finding {
	return warnf(remedy, "packets from %s to %s get this node's address, so that pods of other nodes do not see where they come from: %s", p.src, p.dst, rule)
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
func (x *examination) dropped(t *table, p packet) (Finding, bool) {
	var found Finding
	f := t.passes("FORWARD", p)
	switch {
	case f.accept:
		return found, false
	case f.rule != "":
		found = badf(t.deleteRule(f.rule), "packets from %s to %s are dropped in FORWARD by %s", p.src, p.dst, f.rule)
	case x.wanted().Forward && !x.wanted().NFTables:
		found = badf("systemctl restart twilld", "the policy of FORWARD is DROP, and flannel's rule that accepts packets from %s to %s is missing", p.src, p.dst)
	default:
		found = badf(t.program+" -P FORWARD ACCEPT", "the policy of FORWARD is DROP, and no rule accepts packets from %s to %s", p.src, p.dst)
	}
	if len(f.maybe) > 0 {
		found.Level = Warn
		found.Text += ", unless it is decided before: " + f.maybe[0]
	}
	return found, true
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
		return []Finding{okf("datagrams of peers come in: pings come back through the tunnel")}
	case len(from) == 0:
		return []Finding{okf("plain routes need none")}
	}
	p := packet{proto: "udp"}
	if x.Daemon != nil && x.Daemon.Underlay != nil {
		p.in = x.Daemon.Underlay.Name
	}
	byPort := func(a, b gate) int { return cmp.Or(cmp.Compare(a.program, b.program), cmp.Compare(a.port, b.port)) }
	var found []Finding
	var ports []string
	for _, g := range slices.SortedFunc(maps.Keys(from), byPort) {
		t, err := readChains(ctx, g.program, "filter")
		if err != nil {
			found = append(found, warnf("", "%v", err))
			continue
		}
		if port := strconv.Itoa(g.port); !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
		p.dport = g.port
		for _, p.src = range from[g] {
			if closed, ok := t.closed(p); ok {
				found = append(found, closed)
				break // one remedy covers all
			}
		}
	}
	found = append(found, dropHooks(ctx, "input")...)
	if len(found) == 0 {
		found = append(found, okf("iptables and nftables of this node let datagrams to port %s in", strings.Join(ports, " and ")))
	}
	return found
}

// closed reports whether INPUT drops a datagram, and why.
func (t *table) closed(p packet) (Finding, bool) {
	f := t.passes("INPUT", p)
	if f.accept {
		return Finding{}, false
	}
	by, from := "the policy of INPUT", "peers"
	if f.rule != "" {
		by = f.rule
	}
	if p.src.IsValid() {
		from = p.src.String()
	}
	found := badf(fmt.Sprintf("%s -I INPUT -p udp --dport %d -j ACCEPT", t.program, p.dport),
		"%s drops datagrams of %s to UDP port %d", by, from, p.dport)
	if len(f.maybe) > 0 {
		found.Level = Warn
		found.Text += ", unless it is decided before: " + f.maybe[0]
	}
	return found, true
}

// dropHooks finds nftables chains that drop what their rules do not accept. Chains
// of iptables, which nft lists too, are left out.
func dropHooks(ctx context.Context, hook string) []Finding {
	out, err := output(ctx, "nft", "-j", "list", "chains")
	if err != nil {
		return nil // without nft, nftables chains are unlikely
	}
	var list struct {
		NFTables []struct{ Chain *nftChain }
	}
	if json.Unmarshal(out, &list) != nil {
		return nil
	}
	var found []Finding
	for _, e := range list.NFTables {
		c := e.Chain
		if c == nil || c.Hook != hook || c.Policy != "drop" || c.Table == "filter" && c.Name == strings.ToUpper(hook) {
			continue
		}
		if c.Family != "ip" && c.Family != "inet" && c.Family != "ip6" {
			continue
		}
		found = append(found, warnf(fmt.Sprintf("nft 'chain %s %s %s { policy accept; }'", c.Family, c.Table, c.Name),
			"the nftables chain %s %s %s drops all that its own rules do not accept, whatever other tables do", c.Family, c.Table, c.Name))
	}
	return found
}
