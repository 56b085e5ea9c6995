package rules

import (
	"fmt"
	"maps"
	"net/netip"
)

// Wanted describes the rules that should exist.
type Wanted struct {
	// NFTables selects nftables instead of iptables: EnableNFTables of the
	// network config.
	NFTables bool
	// Masquerade gives packets that leave the pod network the address of the
	// node: --ip-masq.
	Masquerade bool
	// RandomFully makes masquerading choose source ports at random, if the tool
	// supports it: unless --ip-masq-fully-random-disable.
	RandomFully bool
	// Forward accepts forwarded packets of the pod network:
	// --iptables-forward-rules.
	Forward bool
	// IPv4 and IPv6 are the addresses of the pods. A family with the zero Pods
	// gets no rules.
	IPv4, IPv6 Pods
	// Guard describes the tunnels to other nodes. Its rules are added only if there are
	// other rules.
	Guard Guard
}

// Equal reports whether w and o describe the same rules.
func (w Wanted) Equal(o Wanted) bool {
	return w.NFTables == o.NFTables && w.Masquerade == o.Masquerade && w.RandomFully == o.RandomFully && w.Forward == o.Forward &&
		w.IPv4 == o.IPv4 && w.IPv6 == o.IPv6 && w.Guard.equal(o.Guard)
}

// Pods are the addresses of one family.
type Pods struct {
	Network netip.Prefix // of all nodes
	Subnet  netip.Prefix // of this node, inside Network; used only for masquerading
}

// of returns the addresses of a family.
func (w Wanted) of(f *family) Pods {
	if f == &ipv6 {
		return w.IPv6
	}
	return w.IPv4
}

// normal returns w without host bits and without families that need no rules,
// or an error that describes what is invalid.
func (w Wanted) normal() (Wanted, error) {
	if !w.Masquerade && !w.Forward {
		w.IPv4, w.IPv6 = Pods{}, Pods{}
	}
	for _, f := range families {
		p := w.of(f)
		if p == (Pods{}) {
			continue
		}
		if !f.holds(p.Network) {
			return Wanted{}, fmt.Errorf("firewall rules: network %s is not an %s prefix of one bit or more", p.Network, f.name)
		}
		p.Network, p.Subnet = p.Network.Masked(), p.Subnet.Masked()
		inside := p.Subnet.IsValid() && p.Subnet.Bits() >= p.Network.Bits() && p.Network.Contains(p.Subnet.Addr())
		if w.Masquerade && !inside {
			return Wanted{}, fmt.Errorf("firewall rules: subnet %s is outside the network %s", p.Subnet, p.Network)
		}
		if f == &ipv6 {
			w.IPv6 = p
		} else {
			w.IPv4 = p
		}
	}
	return w, nil
}

// target is the wanted content of the chains of one family.
type target struct {
	// rules holds the chains to compare. A chain without rules is removed.
	rules map[*chain][]rule
	// beside, if valid, is the network of these rules. Rules of other networks
	// are then accepted in the same chains, since several daemons on one host
	// share them.
	beside netip.Prefix
}

// target returns the rules of a family. Masquerading chooses ports at random if
// random is set. If all is set, no rules of other networks are accepted.
func (w Wanted) target(f *family, random, all bool) target {
	p := w.of(f)
	t := target{rules: make(map[*chain][]rule), beside: p.Network}
	if all {
		t = nothing()
	}
	if p == (Pods{}) {
		return t
	}
	if w.Masquerade {
		t.rules[&masquerading] = w.masquerade(f, p, random)
	}
	if w.Forward {
		t.rules[&forwarding] = []rule{
			{src: in(p.Network), do: accept},
			{dst: in(p.Network), do: accept},
		}
	}
	g := w.Guard
	if w.unwritable() != nil {
		g.Underlay = nil
	}
	t.guard(f, g, p.Network)
	return t
}

// except returns t without the wanted rules of these chains.
func (t target) except(these []*chain) target {
	rest := target{rules: maps.Clone(t.rules), beside: t.beside}
	for _, c := range these {
		if len(t.rules[c]) > 0 {
			delete(rest.rules, c)
		}
	}
	return rest
}

// nothing returns the target of a clean-up.
func nothing() target {
	t := target{rules: make(map[*chain][]rule)}
	for _, c := range chains {
		t.rules[c] = nil
	}
	return t
}

// tolerates reports whether a rule, given as its words, is one of flannel's
// rules for another network, which is accepted in the same chain.
func (t target) tolerates(words []string, f *family) bool {
	if !t.beside.IsValid() {
		return false
	}
	elsewhere := false
	for _, w := range words {
		p, err := netip.ParsePrefix(w)
		switch {
		case err != nil || p == f.multicast:
		case p.Overlaps(t.beside):
			return false
		default:
			elsewhere = true
		}
	}
	return elsewhere
}

func (w Wanted) masquerade(f *family, p Pods, random bool) []rule {
	masq := masquerade
	if random {
		masq = masqueradeFully
	}
	// Packets from outside to a pod of this node keep their source, so that
	// the pod sees it. Flannel's rule for nftables is wider: it also matches
	// packets to pods of other nodes, so the last rule never matches.
	stranger := rule{src: notIn(p.Network), dst: in(p.Subnet), do: goBack}
	if w.NFTables {
		stranger = rule{src: notIn(p.Subnet), dst: in(p.Network), do: goBack}
	}
	return []rule{
		// kube-proxy will masquerade it.
		{marked: true, do: goBack},
		// From pod to pod.
		{src: in(p.Subnet), dst: in(p.Network), do: goBack},
		{src: in(p.Network), dst: in(p.Subnet), do: goBack},
		stranger,
		// From a pod to the world; multicast keeps its source.
		{src: in(p.Network), dst: notIn(f.multicast), do: masq},
		// From the world to a pod of another node: the answer must return through this
		// node.
		{src: notIn(p.Network), dst: in(p.Network), do: masq},
	}
}
