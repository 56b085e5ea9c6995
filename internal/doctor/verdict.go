package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/host/rules"
)

// Packet is the first packet of a connection, for [Firewall].
type Packet struct {
	In, Out  string // interfaces; if empty, unknown, so that a rule may match
	Src, Dst netip.Addr
	Proto    string // as iptables names it: "udp"; if empty, any
	Port     int    // of the destination; 0: unknown, or there are none

	unmarked bool // known not to be marked by other programs, as kube-proxy marks packets for services
}

// Verdict is what the rules of a host do with a packet.
type Verdict struct {
	Accept bool   // if false, it is dropped or, by Source, gets another source address
	Rule   string // the deciding rule or policy; empty if nothing but an accepting policy
	Remedy string // a command that lets the packet pass; empty if it is accepted
	Unless string // an earlier rule that may decide otherwise, by what is not known here
}

// Firewall is a copy of the rules of a host for one family of addresses: those of
// iptables, and those of nftables. Its methods ask the host nothing.
type Firewall struct {
	filter, nat *table
	nft         ruleset // empty if there is no nft
}

// ReadFirewall reads the rules, in the network namespace of the calling thread.
func ReadFirewall(ctx context.Context, ipv6 bool) (*Firewall, error) {
	program := "iptables"
	if ipv6 {
		program = "ip6tables"
	}
	f := &Firewall{nft: readRuleset(ctx)}
	var err error
	if f.filter, err = readChains(ctx, program, "filter"); err == nil {
		f.nat, err = readChains(ctx, program, "nat")
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ParseFirewall returns the rules that the outputs of iptables -t filter -S and
// iptables -t nat -S list.
func ParseFirewall(filter, nat string) *Firewall {
	return &Firewall{filter: parseChains("iptables", filter), nat: parseChains("iptables", nat)}
}

// Forward returns what happens to a packet between pods that the host forwards.
func (f *Firewall) Forward(p Packet) Verdict {
	p.unmarked = true
	v := f.filter.verdict("FORWARD", p)
	if !v.Accept {
		return v
	}
	return f.nft.verdict("forward", p, v)
}

// Input returns what happens to a datagram that is for the host itself.
func (f *Firewall) Input(p Packet) Verdict {
	v := f.filter.verdict("INPUT", p)
	if !v.Accept {
		v.Remedy = fmt.Sprintf("%s -I INPUT -p udp --dport %d -j ACCEPT", f.filter.program, p.Port)
		return v
	}
	return f.nft.verdict("input", p, v)
}

// Source returns whether a packet between pods that leaves keeps its source address.
func (f *Firewall) Source(p Packet) Verdict {
	p.unmarked = true
	if rule, ok := f.nft.translator(p); ok {
		return Verdict{Rule: rule.String(), Remedy: rule.delete()}
	}
	v := Verdict{Accept: true}
	var target string
	switch target, v.Rule = f.nat.walk("POSTROUTING", p, &v.Unless, 0); target {
	case "MASQUERADE", "SNAT", "NETMAP":
		v.Accept, v.Remedy = false, f.nat.program+" -t nat -D"+strings.TrimPrefix(v.Rule, "-A")
	}
	return v
}

// Drops returns how many packets each rule and policy that drops has dropped, as far as it
// is counted.
func (f *Firewall) Drops() map[string]uint64 {
	drops := map[string]uint64{}
	for key, packets := range f.filter.hits {
		if chain, ok := strings.CutPrefix(key, "-P "); ok {
			if f.filter.policy[chain] == "DROP" {
				drops[key+" DROP"] = packets
			}
		} else if words := rules.Words(key); slices.Contains(words, "DROP") || slices.Contains(words, "REJECT") {
			drops[key] = packets
		}
	}
	for _, rules := range f.nft.rules {
		for _, r := range rules {
			if packets, ok := r.dropped(); ok {
				drops[r.String()] = packets
			}
		}
	}
	return drops
}

// Remedy returns the command that removes a rule or policy that Drops has named.
func (f *Firewall) Remedy(dropper string) string {
	if chain, ok := strings.CutPrefix(dropper, "-P "); ok {
		return fmt.Sprintf("%s -P %s ACCEPT", f.filter.program, strings.TrimSuffix(chain, " DROP"))
	}
	if strings.HasPrefix(dropper, "-A ") {
		return f.filter.deleteRule(dropper)
	}
	for _, rules := range f.nft.rules {
		for _, r := range rules {
			if r.String() == dropper {
				return r.delete()
			}
		}
	}
	return ""
}

// dropped returns how many packets a rule has dropped, if it does and counts them. Rules
// of iptables are left out, which iptables counts.
func (r nftRule) dropped() (packets uint64, ok bool) {
	var drops, counts bool
	for _, statement := range r.Expr {
		for name, value := range statement {
			switch name {
			case "drop", "reject":
				drops = r.Table != "filter" || r.Family == "inet"
			case "counter":
				var c struct{ Packets uint64 }
				counts = json.Unmarshal(value, &c) == nil
				packets = c.Packets
			}
		}
	}
	return packets, drops && counts
}

// String names the rule.
func (r nftRule) String() string {
	return fmt.Sprintf("rule %d of the nftables chain %s %s %s", r.Handle, r.Family, r.Table, r.Chain)
}

// delete returns the command that deletes the rule.
func (r nftRule) delete() string {
	return fmt.Sprintf("nft delete rule %s %s %s handle %d", r.Family, r.Table, r.Chain, r.Handle)
}
