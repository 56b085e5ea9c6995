package rules

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// listing is the current content of an nftables table.
type listing struct {
	exists bool
	// useless is the reason why the table must be replaced, if any: it cannot
	// be parsed, or is not in force.
	useless string
	chains  map[string]listedChain
}

// listedChain is a chain of a table.
type listedChain struct {
	hook  hook
	rules []string // in the format of rule.nft; any other rule in a form that rule.nft never produces
}

// hook is where a base chain is attached. A chain that is only jumped to has the zero
// hook.
type hook struct {
	Type   string
	Hook   string
	Prio   int
	Policy string
}

func (h hook) String() string {
	if h == (hook{}) {
		return "a chain without a hook"
	}
	return fmt.Sprintf("type %s hook %s priority %d policy %s", h.Type, h.Hook, h.Prio, h.Policy)
}

// listed returns the hook as nft lists it.
func (c *chain) listed() hook {
	return hook{Type: string(c.kind), Hook: string(c.at), Prio: c.number, Policy: "accept"}
}

// listingJSON is the output of nft --json list table; libnftables-json(5). Each
// object has exactly one of the members.
type listingJSON struct {
	Objects []struct {
		Table *struct{ Flags json.RawMessage }
		Chain *struct {
			Name string
			hook
		}
		Rule *struct {
			Chain string
			Expr  []json.RawMessage
		}
	} `json:"nftables"`
}

// parseListing parses the output of nft. Invalid JSON yields a listing too: for
// a table with flags, nft 1.0.6 truncates its output but exits with 0.
func parseListing(text []byte) listing {
	l := listing{exists: true, chains: make(map[string]listedChain)}
	var j listingJSON
	if err := json.Unmarshal(text, &j); err != nil {
		l.useless = "cannot be read: " + err.Error()
		return l
	}
	for _, o := range j.Objects {
		switch {
		case o.Table != nil && len(o.Table.Flags) > 0:
			l.useless = "has flags " + string(o.Table.Flags)
		case o.Chain != nil:
			l.chains[o.Chain.Name] = listedChain{hook: o.Chain.hook}
		case o.Rule != nil:
			c := l.chains[o.Rule.Chain]
			c.rules = append(c.rules, ruleText(o.Rule.Expr))
			l.chains[o.Rule.Chain] = c
		}
	}
	return l
}

// ruleText returns a rule as rule.nft formats it, or a text that rule.nft never
// produces if the rule has parts that flannel's rules do not have.
func ruleText(statements []json.RawMessage) string {
	var words []string
	for _, s := range statements {
		words = append(words, statementText(s))
	}
	return strings.Join(words, " ")
}

// statementText converts a part of a rule: an object with one member.
func statementText(text json.RawMessage) string {
	var statement map[string]json.RawMessage
	if json.Unmarshal(text, &statement) != nil || len(statement) != 1 {
		return string(text)
	}
	for name, value := range statement {
		switch name {
		case "accept", "drop", "return":
			return name
		case "masquerade":
			return strings.TrimSpace(name + " " + flags(value))
		case "match":
			if match, ok := matchText(value); ok {
				return match
			}
		}
	}
	return string(text)
}

// flags parses one flag or a list of them.
func flags(value json.RawMessage) string {
	var m struct{ Flags json.RawMessage }
	if json.Unmarshal(value, &m) != nil || m.Flags == nil {
		return ""
	}
	var one string
	if json.Unmarshal(m.Flags, &one) == nil {
		return one
	}
	var list []string
	if json.Unmarshal(m.Flags, &list) == nil {
		return strings.Join(list, ",")
	}
	return string(m.Flags)
}

// matchText converts a comparison of an address, an interface, a port, a protocol, a user,
// the mark or the route back.
func matchText(value json.RawMessage) (text string, ok bool) {
	var m struct {
		Op   string
		Left struct {
			Meta    *struct{ Key string }
			Payload *struct{ Protocol, Field string }
			Fib     *struct {
				Result string
				Flags  []string
			}
		}
		Right json.RawMessage
	}
	if json.Unmarshal(value, &m) != nil {
		return "", false
	}
	var left, right string
	switch {
	case m.Left.Payload != nil && m.Left.Payload.Field == "dport":
		var port uint16
		if json.Unmarshal(m.Right, &port) != nil {
			return "", false
		}
		left, right = m.Left.Payload.Protocol+" dport", fmt.Sprint(port)
	case m.Left.Payload != nil:
		p, valid := prefix(m.Right)
		if !valid {
			return "", false
		}
		left, right = m.Left.Payload.Protocol+" "+m.Left.Payload.Field, p.String()
	case m.Left.Fib != nil:
		// A boolean, but some versions of the tools print a number or "missing".
		missing := slices.Contains([]string{"false", "0", `"missing"`}, string(m.Right))
		return noReversePath, missing && m.Op == "==" && m.Left.Fib.Result == "oif" && slices.Equal(m.Left.Fib.Flags, []string{"saddr", "iif"})
	case m.Left.Meta != nil && m.Left.Meta.Key == "iifname":
		var name string
		if json.Unmarshal(m.Right, &name) != nil {
			return "", false
		}
		left, right = "iifname", `"`+name+`"` // with the escape, if any, as in quoteName
	case m.Left.Meta != nil && m.Left.Meta.Key == "l4proto":
		// A number if /etc/protocols is missing.
		if text := string(m.Right); text != `"udp"` && text != "17" {
			return "", false
		}
		left, right = "meta l4proto", "udp"
	case m.Left.Meta != nil && m.Left.Meta.Key == "skuid":
		u, valid := users(m.Right)
		if !valid {
			return "", false
		}
		left, right = "meta skuid", u.String()
	case m.Left.Meta != nil:
		var number uint32
		if json.Unmarshal(m.Right, &number) != nil {
			return "", false
		}
		left, right = "meta "+m.Left.Meta.Key, fmt.Sprintf("%#x", number)
	default:
		return "", false
	}
	if m.Op != "==" {
		left += " " + m.Op
	}
	return left + " " + right, true
}

// prefix parses an address or a prefix.
func prefix(value json.RawMessage) (netip.Prefix, bool) {
	var single string
	if json.Unmarshal(value, &single) == nil {
		a, err := netip.ParseAddr(single)
		return netip.PrefixFrom(a, a.BitLen()), err == nil
	}
	var p struct {
		Prefix *struct {
			Addr netip.Addr
			Len  int
		}
	}
	if json.Unmarshal(value, &p) != nil || p.Prefix == nil {
		return netip.Prefix{}, false
	}
	out := netip.PrefixFrom(p.Prefix.Addr, p.Prefix.Len)
	return out, out.IsValid()
}

// users parses a user or a range of users.
func users(value json.RawMessage) (u uids, ok bool) {
	if json.Unmarshal(value, &u.first) == nil {
		return uids{u.first, u.first}, true
	}
	var r struct{ Range *[2]uint32 }
	if json.Unmarshal(value, &r) != nil || r.Range == nil {
		return u, false
	}
	return uids{r.Range[0], r.Range[1]}, true
}
