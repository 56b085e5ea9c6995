package doctor

import (
	"net/netip"
	"strings"
	"testing"
)

func TestRuleMatchesAPacketOrNotOrMayMatch(t *testing.T) {
	p := Packet{
		In: "eth0", Proto: "udp", Port: 8285,
		Src: netip.MustParseAddr("192.0.2.2"), Dst: netip.MustParseAddr("192.0.2.1"),
	}
	for line, want := range map[string]struct {
		answer
		target string
	}{
		`-A INPUT -j DROP`: {yes, "DROP"},
		`-A INPUT -j REJECT --reject-with icmp-port-unreachable`:     {yes, "REJECT"},
		`-A INPUT -p tcp -j DROP`:                                    {no, "DROP"},
		`-A INPUT ! -p tcp -j DROP`:                                  {yes, "DROP"},
		`-A INPUT -p udp -m udp --dport 8285 -j ACCEPT`:              {yes, "ACCEPT"},
		`-A INPUT -p udp -m udp --dport 8000:8284 -j ACCEPT`:         {no, "ACCEPT"},
		`-A INPUT -p udp -m udp ! --dport 8285 -j DROP`:              {no, "DROP"},
		`-A INPUT -p udp -m udp --sport 8285 -j ACCEPT`:              {maybe, "ACCEPT"},
		`-A INPUT -p udp -m multiport --dports 53,8285 -j ACCEPT`:    {maybe, "ACCEPT"},
		`-A INPUT -p tcp -m multiport --dports 53,8285 -j ACCEPT`:    {no, "ACCEPT"},
		`-A INPUT -s 192.0.2.0/24 -d 192.0.2.1/32 -i eth0 -j ACCEPT`: {yes, "ACCEPT"},
		`-A INPUT -s 198.51.100.0/24 -j ACCEPT`:                      {no, "ACCEPT"},
		`-A INPUT -i eth+ -j ACCEPT`:                                 {yes, "ACCEPT"},
		`-A INPUT ! -i eth+ -j ACCEPT`:                               {no, "ACCEPT"},
		`-A INPUT -o eth0 -j ACCEPT`:                                 {maybe, "ACCEPT"},
		`-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT`:    {no, "ACCEPT"},
		`-A INPUT -m conntrack --ctstate NEW -j ACCEPT`:              {yes, "ACCEPT"},
		`-A INPUT -m comment --comment "a \"-p tcp\" b" -j ACCEPT`:   {yes, "ACCEPT"},
		`-A INPUT -m comment --comment "" -j ACCEPT`:                 {yes, "ACCEPT"},
		`-A INPUT -m set ! --match-set allowed src -j DROP`:          {maybe, "DROP"},
		`-A INPUT`:                            {yes, ""},
		`-A INPUT -p`:                         {no, ""},
		`-A INPUT -m comment --comment "open`: {yes, ""},
	} {
		if m, target := match(line, p); m != want.answer || target != want.target {
			t.Errorf("%s: got %v, %q, want %v, %q", line, m, target, want.answer, want.target)
		}
	}
}

func TestPacketIsFollowedThroughChains(t *testing.T) {
	table := parseChains("iptables", `-P INPUT DROP
-P FORWARD ACCEPT
-N A
-N B
-A INPUT -j LOG
-A INPUT -j A
-A INPUT -p tcp -j ACCEPT
-A INPUT -j B
-A A -s 192.0.2.3/32 -j RETURN
-A A -s 192.0.2.2/32 -j ACCEPT
-A B -m mark --mark 0x1 -j ACCEPT
`)
	for from, want := range map[string]Verdict{
		"192.0.2.2": {Accept: true, Rule: "-A A -s 192.0.2.2/32 -j ACCEPT"},
		"192.0.2.3": {Rule: "the policy DROP of INPUT", Remedy: "iptables -P INPUT ACCEPT", Unless: "-A B -m mark --mark 0x1 -j ACCEPT"},
	} {
		if got := table.verdict("INPUT", Packet{Proto: "udp", Src: netip.MustParseAddr(from)}); got != want {
			t.Errorf("%s: got %+v, want %+v", from, got, want)
		}
	}
	if v := table.verdict("FORWARD", Packet{}); v != (Verdict{Accept: true}) {
		t.Errorf("an empty chain: %+v", v)
	}
}

// TestRuleThatMayReturnLeavesTheVerdictOpen: what comes after it is not certain.
func TestRuleThatMayReturnLeavesTheVerdictOpen(t *testing.T) {
	rules := ParseFirewall(`-P INPUT ACCEPT
-N A
-A INPUT -j A
-A A -m set --match-set trusted src -j RETURN
-A A -j DROP
`, "")
	f, found := closed(rules, Packet{Proto: "udp", Src: netip.MustParseAddr("192.0.2.2"), Port: 8285})
	if !found || f.Level != Warn || !strings.Contains(f.Text, "unless an earlier rule decides: -A A -m set --match-set trusted src -j RETURN") {
		t.Errorf("got %+v", f)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add(`-A INPUT -p udp -m udp ! --dport 1:2 -m comment --comment "a \" b" -s 10.0.0.0/8 -j DROP`)
	f.Fuzz(func(t *testing.T, line string) {
		table := parseChains("iptables", "-P INPUT DROP\n-A INPUT "+line)
		table.verdict("INPUT", Packet{})
	})
}
