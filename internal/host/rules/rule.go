package rules

import (
	"fmt"
	"net/netip"
	"strings"
)

// rule is one of flannel's rules, independent of the tool that writes it.
type rule struct {
	marked   bool    // only packets with kubeProxyMark
	src, dst operand // zero: any
	notUDP   bool    // only packets of other protocols
	iif      string  // only packets that arrive on this interface; empty: any
	port     uint16  // only UDP packets to this port; 0: any
	spoofed  bool    // only packets that arrive on an interface that does not lead to their source
	owner    *uids   // only packets of processes of these users; nil: any packets
	do       verdict
}

// uids is a range of user IDs, including both ends.
type uids struct{ first, last uint32 }

// anyUser is all users.
var anyUser = uids{0, 1<<32 - 2}

func (u *uids) String() string {
	if u.first == u.last {
		return fmt.Sprint(u.first)
	}
	return fmt.Sprintf("%d-%d", u.first, u.last)
}

// operand is the set of addresses inside or outside a prefix.
type operand struct {
	prefix netip.Prefix
	not    bool
}

func in(p netip.Prefix) operand    { return operand{prefix: p} }
func notIn(p netip.Prefix) operand { return operand{prefix: p, not: true} }

// verdict is what a rule does with a matching packet.
type verdict int

const (
	accept verdict = iota
	goBack         // return to the calling chain
	masquerade
	masqueradeFully // with source ports chosen at random
	drop
)

// kubeProxyMark is the mark bit that kube-proxy sets on packets that it
// masquerades itself (KUBE-MARK-MASQ; --iptables-masquerade-bit, 14 by
// default).
const kubeProxyMark = 0x4000

// iptables returns the rule as the words that iptables -S prints after the name
// of the chain.
func (r rule) iptables(comment string) []string {
	var w []string
	for _, o := range []struct {
		flag string
		operand
	}{{"-s", r.src}, {"-d", r.dst}} {
		if !o.prefix.IsValid() {
			continue
		}
		if o.not {
			w = append(w, "!")
		}
		w = append(w, o.flag, o.prefix.String())
	}
	if r.iif != "" {
		w = append(w, "-i", r.iif)
	}
	if r.notUDP {
		w = append(w, "!", "-p", "udp")
	}
	if r.port != 0 {
		w = append(w, "-p", "udp", "-m", "udp", "--dport", fmt.Sprint(r.port))
	}
	if r.spoofed {
		w = append(w, "-m", "rpfilter", "--invert")
	}
	if r.owner != nil {
		w = append(w, "-m", "owner", "--uid-owner", r.owner.String())
	}
	if r.marked {
		w = append(w, "-m", "mark", "--mark", fmt.Sprintf("%#x/%#x", kubeProxyMark, kubeProxyMark))
	}
	w = append(w, "-m", "comment", "--comment", comment, "-j")
	switch r.do {
	case goBack:
		return append(w, "RETURN")
	case masquerade:
		return append(w, "MASQUERADE")
	case masqueradeFully:
		return append(w, "MASQUERADE", "--random-fully")
	case drop:
		return append(w, "DROP")
	}
	return append(w, "ACCEPT")
}

// noReversePath is the nft expression that matches spoofed packets (Linux 4.10, nft_fib),
// like the match rpfilter of iptables.
const noReversePath = "fib saddr . iif oif missing"

// quoteName returns the name of an interface for nft, which takes "*" at the end as a
// pattern unless a backslash precedes it.
func quoteName(name string) string {
	if literal, ok := strings.CutSuffix(name, "*"); ok {
		name = literal + `\*`
	}
	return `"` + name + `"`
}

// nft returns the rule in the syntax of nft, in the form that ruleText returns
// for existing ones. The whole mark must equal kubeProxyMark, as in flannel's
// rule.
func (r rule) nft(f *family) string {
	var w []string
	if r.marked {
		w = append(w, fmt.Sprintf("meta mark %#x", kubeProxyMark))
	}
	for _, o := range []struct {
		field string
		operand
	}{{"saddr", r.src}, {"daddr", r.dst}} {
		if !o.prefix.IsValid() {
			continue
		}
		w = append(w, string(f.nft), o.field)
		if o.not {
			w = append(w, "!=")
		}
		w = append(w, o.prefix.String())
	}
	if r.iif != "" {
		w = append(w, "iifname", quoteName(r.iif))
	}
	if r.notUDP {
		w = append(w, "meta l4proto != udp")
	}
	if r.port != 0 {
		w = append(w, fmt.Sprintf("udp dport %d", r.port))
	}
	if r.spoofed {
		w = append(w, noReversePath)
	}
	if r.owner != nil {
		w = append(w, "meta skuid "+r.owner.String())
	}
	switch r.do {
	case drop:
		w = append(w, "drop")
	case accept:
		w = append(w, "accept")
	case goBack:
		w = append(w, "return")
	case masquerade:
		w = append(w, "masquerade")
	case masqueradeFully:
		w = append(w, "masquerade fully-random")
	}
	return strings.Join(w, " ")
}
