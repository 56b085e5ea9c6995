package doctor

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// nftChain is a chain in nft's JSON, libnftables-json(5).
type nftChain struct {
	Family, Table, Name string
	Type, Hook, Policy  string // of base chains
	Prio                int
}

// nftRule is a rule in nft's JSON. Each statement is an object with one member.
type nftRule struct {
	Family, Table, Chain string
	Handle               int
	Expr                 []map[string]json.RawMessage
}

// ruleset is what nft lists. The tables of iptables-nft are part of it, with their
// conditions in a form of their own; iptables lists those.
type ruleset struct {
	bases []nftChain
	rules map[[3]string][]nftRule // by family, table and chain
}

// readRuleset lists all tables. Without nft, it returns none: then nftables chains are
// unlikely.
func readRuleset(ctx context.Context) ruleset {
	out, err := output(ctx, "nft", "-j", "list", "ruleset")
	if err != nil {
		return ruleset{}
	}
	var list struct {
		NFTables []struct {
			Chain *nftChain
			Rule  *nftRule
		}
	}
	if json.Unmarshal(out, &list) != nil {
		return ruleset{}
	}
	r := ruleset{rules: map[[3]string][]nftRule{}}
	for _, o := range list.NFTables {
		switch {
		case o.Chain != nil && o.Chain.Hook != "":
			r.bases = append(r.bases, *o.Chain)
		case o.Rule != nil:
			key := [3]string{o.Rule.Family, o.Rule.Table, o.Rule.Chain}
			r.rules[key] = append(r.rules[key], *o.Rule)
		}
	}
	slices.SortStableFunc(r.bases, func(a, b nftChain) int { return cmp.Compare(a.Prio, b.Prio) })
	return r
}

// verdict returns what the chains of a hook do with a packet that iptables accepts with the
// verdict v.
func (r ruleset) verdict(hook string, p Packet, v Verdict) Verdict {
	for _, c := range r.hooked("filter", hook, p) {
		verdict, rule := r.walk(c.Family, c.Table, c.Name, p, 0)
		switch verdict {
		case "drop", "reject":
			return Verdict{Rule: rule.String(), Remedy: rule.delete(), Unless: v.Unless}
		case "maybe":
			v.Unless = cmp.Or(v.Unless, rule.String())
		}
		if verdict != "accept" && c.Policy == "drop" {
			return Verdict{
				Rule:   fmt.Sprintf("the policy drop of the nftables chain %s %s %s", c.Family, c.Table, c.Name),
				Remedy: fmt.Sprintf("nft 'chain %s %s %s { policy accept; }'", c.Family, c.Table, c.Name), Unless: v.Unless,
			}
		}
	}
	return v
}

// translator returns the rule that translates the source of a packet after routing. A
// chain that accepts the packet does not keep later ones from doing so.
func (r ruleset) translator(p Packet) (rule nftRule, ok bool) {
	for _, c := range r.hooked("nat", "postrouting", p) {
		if verdict, rule := r.walk(c.Family, c.Table, c.Name, p, 0); verdict == "masquerade" || verdict == "snat" {
			return rule, true
		}
	}
	return nftRule{}, false
}

// hooked returns the base chains of a type and a hook that a packet passes, without those
// of iptables, in the order in which it does.
func (r ruleset) hooked(kind, hook string, p Packet) (chains []nftChain) {
	family, ofIptables := "ip", "filter"
	if p.Src.Is6() {
		family = "ip6"
	}
	if kind == "nat" {
		ofIptables = "nat"
	}
	for _, c := range r.bases {
		if c.Type == kind && c.Hook == hook && (c.Family == family || c.Family == "inet") &&
			!(c.Table == ofIptables && c.Name == strings.ToUpper(hook)) {
			chains = append(chains, c)
		}
	}
	return chains
}

// walk returns the verdict of a chain and the rule that it comes from. The verdict is
// empty if the packet passes the chain, and "maybe" if a rule that cannot be evaluated
// here might decide.
func (r ruleset) walk(family, table, chain string, p Packet, depth int) (verdict string, rule nftRule) {
	for _, rule := range r.rules[[3]string{family, table, chain}] {
		m := yes
		for _, statement := range rule.Expr {
			for name, value := range statement {
				switch name {
				case "match":
					m = min(m, nftMatch(value, p))
				case "counter", "log", "comment", "mangle":
				case "accept", "drop", "reject", "masquerade", "snat", "return", "jump", "goto":
					if m == no {
						continue
					}
					verdict := name
					if name == "jump" || name == "goto" {
						var to struct{ Target string }
						if json.Unmarshal(value, &to) != nil || depth == deepest {
							continue
						}
						if verdict, rule = r.walk(family, table, to.Target, p, depth+1); name == "goto" && verdict == "" {
							verdict = "return"
						}
					}
					switch {
					case verdict == "":
					case m == maybe:
						return "maybe", rule
					case verdict == "return":
						return "", rule
					default:
						return verdict, rule
					}
				default:
					m = min(m, maybe) // a limit, a set, a condition of iptables
				}
			}
		}
	}
	return "", nftRule{}
}

// nftMatch evaluates a comparison for a packet.
func nftMatch(text json.RawMessage, p Packet) answer {
	var c struct {
		Op    string
		Left  json.RawMessage
		Right json.RawMessage
	}
	if json.Unmarshal(text, &c) != nil || c.Op != "==" && c.Op != "!=" && c.Op != "in" {
		return maybe
	}
	m := nftEquals(c.Left, c.Right, p)
	if c.Op == "!=" && m != maybe {
		m = yes - m
	}
	return m
}

// nftEquals reports whether the field left of a packet is right, or one of right.
func nftEquals(left, right json.RawMessage, p Packet) answer {
	var field struct {
		Payload *struct{ Protocol, Field string }
		Meta    *struct{ Key string }
		And     []json.RawMessage `json:"&"`
	}
	if json.Unmarshal(left, &field) != nil {
		return maybe
	}
	switch {
	case field.Payload != nil:
		var a netip.Addr
		switch field.Payload.Field {
		case "saddr":
			a = p.Src
		case "daddr":
			a = p.Dst
		}
		switch proto := field.Payload.Protocol; {
		case proto != "ip" && proto != "ip6":
			return maybe
		case (proto == "ip6") != p.Src.Is6():
			return no
		case !a.IsValid():
			return maybe
		}
		return oneOf(right, func(s string) answer { return addrIn(s, a) })
	case field.Meta != nil:
		switch field.Meta.Key {
		case "oifname", "oif":
			return oneOf(right, func(s string) answer { return named(s, p.Out) })
		case "iifname", "iif":
			return oneOf(right, func(s string) answer { return named(s, p.In) })
		case "nfproto":
			return oneOf(right, func(s string) answer { return sure((s == "ipv6") == p.Src.Is6()) })
		case "mark":
			return unmarked(right, p)
		}
	case len(field.And) == 2:
		var masked struct{ Meta *struct{ Key string } }
		if json.Unmarshal(field.And[0], &masked) == nil && masked.Meta != nil && masked.Meta.Key == "mark" {
			return unmarked(right, p)
		}
	}
	return maybe
}

func sure(b bool) answer {
	if b {
		return yes
	}
	return no
}

// unmarked reports whether a packet without a mark has the mark right, under any mask.
func unmarked(right json.RawMessage, p Packet) answer {
	var n uint32
	if !p.unmarked || json.Unmarshal(right, &n) != nil {
		return maybe
	}
	return sure(n == 0)
}

// named reports whether an interface has a name, which may end in a wildcard.
func named(pattern, name string) answer {
	switch prefix, any := strings.CutSuffix(pattern, "*"); {
	case name == "":
		return maybe
	case any:
		return sure(strings.HasPrefix(name, prefix))
	}
	return sure(name == pattern)
}

// addrIn reports whether an address is s, which is an address, a prefix, or a range
// of addresses with a hyphen.
func addrIn(s string, a netip.Addr) answer {
	if from, to, ok := strings.Cut(s, "-"); ok {
		low, err1 := netip.ParseAddr(from)
		high, err2 := netip.ParseAddr(to)
		if err1 != nil || err2 != nil {
			return maybe
		}
		return sure(low.Compare(a) <= 0 && a.Compare(high) <= 0)
	}
	if prefix, err := netip.ParsePrefix(s); err == nil {
		return sure(prefix.Contains(a))
	}
	if single, err := netip.ParseAddr(s); err == nil {
		return sure(single == a)
	}
	return maybe // a named set
}

// oneOf evaluates the right side of a comparison: a value, a prefix, a range, or a set
// of these.
func oneOf(right json.RawMessage, is func(string) answer) answer {
	var single string
	if json.Unmarshal(right, &single) == nil {
		return is(single)
	}
	var several struct {
		Set    []json.RawMessage
		Range  []string
		Prefix *struct {
			Addr string
			Len  int
		}
	}
	if json.Unmarshal(right, &several) != nil {
		return maybe
	}
	switch {
	case several.Prefix != nil:
		return is(fmt.Sprintf("%s/%d", several.Prefix.Addr, several.Prefix.Len))
	case len(several.Range) == 2:
		return is(several.Range[0] + "-" + several.Range[1])
	case len(several.Set) == 0:
		return maybe
	}
	m := no
	for _, element := range several.Set {
		m = max(m, oneOf(element, is))
	}
	return m
}
