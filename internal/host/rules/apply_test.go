package rules

import (
	"context"
	"net/netip"
	"strings"
	"testing"
)

func TestRulesAreFlannelsToTheLetter(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		l.apply(newRules(t, wanted(fl)))
		if got, want := l.dump(fl), golden(t, fl); got != want {
			t.Errorf("changes from what is wanted\n%s", changes(want, got))
		}
	})
}

func TestRulesOfStockFlannelAreTakenOverWithoutAWrite(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		l.load(t, fl)
		before := l.everything()
		r := newRules(t, wanted(fl))
		l.apply(r)
		if w := l.writes(); w != nil || r.Status().Written != 0 {
			t.Errorf("%d writes: %q", r.Status().Written, w)
		}
		if after := l.everything(); after != before {
			t.Errorf("changes\n%s", changes(before, after))
		}
	})
}

func TestNothingIsWrittenWhileAllIsRight(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		r := newRules(t, wanted(fl))
		l.apply(r)
		if l.writes() == nil {
			t.Fatal("the test does not see writes")
		}
		before, written := l.everything(), r.Status().Written
		for range 3 {
			l.apply(r)
		}
		set(t, r, wanted(fl))
		l.apply(r)
		if w := l.writes(); w != nil || r.Status().Written != written {
			t.Errorf("%d writes: %q", r.Status().Written-written, w)
		}
		if after := l.everything(); after != before { // with handles: nothing was recreated
			t.Errorf("changes\n%s", changes(before, after))
		}
	})
}

// disturbances are what happens to rules on a busy host.
var disturbances = map[bool][]struct{ name, script string }{
	false: {
		{"a rule is deleted", `iptables -t nat -D FLANNEL-POSTRTG 3`},
		{"the first rule is last", `iptables -t nat -S FLANNEL-POSTRTG 1 >/dev/null
			iptables -t nat -D FLANNEL-POSTRTG 1
			iptables -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN`},
		{"a rule is there twice", `ip6tables -A FLANNEL-FWD -d fd00:10:5::/48 -m comment --comment "flanneld forward" -j ACCEPT`},
		{"another's rule is in flannel's chain", `iptables -I FLANNEL-FWD -s 192.0.2.1 -j DROP`},
		{"a chain is empty", `iptables -t nat -F FLANNEL-POSTRTG; ip6tables -F FLANNEL-FWD`},
		{"a jump is gone", `iptables -t nat -F POSTROUTING; ip6tables -F FORWARD`},
		{"a jump is there three times", `for i in 1 2; do iptables -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG; done`},
		{"a jump is without comment", `iptables -F FORWARD; iptables -A FORWARD -j FLANNEL-FWD`},
		{"everything is gone", `for f in iptables ip6tables; do for t in nat filter; do $f -t $t -F; $f -t $t -X; done; done`},
		{"ports are not chosen at random", `iptables -t nat -R FLANNEL-POSTRTG 5 -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE`},
		{"rules are of a flannel before there were chains", `
			iptables -t nat -I POSTROUTING -s 10.5.0.0/16 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN
			iptables -t nat -A POSTROUTING -s 10.5.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
			iptables -I FORWARD -s 10.5.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT`},
		{"the subnet is another", `iptables -t nat -R FLANNEL-POSTRTG 2 -s 10.5.7.0/24 -d 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN`},
	},
	true: {
		{"a rule is deleted", `nft delete rule ip flannel-ipv4 postrtg handle $(nft -a list chain ip flannel-ipv4 postrtg | sed -n 's/.*ip daddr 10.5.1.0.* handle //p')`},
		{"a rule is there twice", `nft add rule ip6 flannel-ipv6 forward ip6 saddr fd00:10:5::/48 accept`},
		{"another's rule is in flannel's chain", `nft insert rule ip flannel-ipv4 forward ip saddr 192.0.2.1 counter drop`},
		{"a rule that JSON has no word for", `nft insert rule ip flannel-ipv4 forward jump { accept\; }`},
		{"a chain is empty", `nft flush chain ip flannel-ipv4 postrtg`},
		{"a chain is gone", `nft flush chain ip flannel-ipv4 forward; nft delete chain ip flannel-ipv4 forward`},
		{"a table is gone", `nft delete table ip6 flannel-ipv6`},
		{"all rules of the host are gone", `nft flush ruleset`},
		{"a table is dormant", `nft add table ip flannel-ipv4 { flags dormant\; }`},
		{"a chain drops", `nft add chain ip flannel-ipv4 forward { policy drop\; }`},
		{"a chain hangs elsewhere", `nft flush chain ip flannel-ipv4 postrtg; nft delete chain ip flannel-ipv4 postrtg; nft add chain ip flannel-ipv4 postrtg { type nat hook prerouting priority 0\; }`},
		{"a chain hangs nowhere", `nft flush chain ip flannel-ipv4 forward; nft delete chain ip flannel-ipv4 forward; nft add chain ip flannel-ipv4 forward; nft add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept`},
		{"ports are not chosen at random", `nft add rule ip flannel-ipv4 postrtg ip saddr 10.5.0.0/16 ip daddr != 224.0.0.0/4 masquerade`},
	},
}

// sameRules compares dumps; recreated chains of nftables come last.
func sameRules(fl flavour, a, b string) bool {
	if !fl.nftables {
		return a == b
	}
	return a == b || chainOrder(a) == chainOrder(b)
}

// chainOrder puts the chain postrtg before the chain forward in each table.
func chainOrder(text string) string {
	tables := strings.SplitAfter(text, "\n}\n")
	for i, table := range tables {
		chains := strings.Split(strings.TrimSuffix(table, "}\n"), "\tchain ")
		if len(chains) == 3 && strings.HasPrefix(chains[1], "forward") {
			chains[1], chains[2] = chains[2], chains[1]
		}
		for j := range chains {
			chains[j] = strings.TrimSpace(chains[j])
		}
		tables[i] = strings.Join(chains, "\n")
	}
	return strings.Join(tables, "\n")
}

func TestWhatIsMissingOrOutOfOrderIsPutRight(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		for _, tt := range disturbances[fl.nftables] {
			t.Run(tt.name, func(t *testing.T) {
				l := newLab(t, fl)
				r := newRules(t, wanted(fl))
				l.apply(r)
				l.sh(tt.script)
				what, err := l.differences(r)
				if err != nil || what == nil {
					t.Fatalf("differences %q, %v", what, err)
				}
				l.apply(r)
				if got, want := l.dump(fl), golden(t, fl); !sameRules(fl, got, want) {
					t.Errorf("changes from what is wanted\n%s", changes(want, got))
				}
				if what, err := l.differences(r); err != nil || what != nil {
					t.Errorf("differences %q, %v", what, err)
				}
			})
		}
	})
}

func (l *lab) differences(r *Rules) (what []string, err error) {
	err = l.ns.Do(func() error {
		what, err = r.Differences(context.Background())
		return err
	})
	return what, err
}

func TestDifferencesAreNamed(t *testing.T) {
	for _, tt := range []struct {
		fl           flavour
		script, want string
	}{
		{iptablesNFT, `iptables -t nat -D FLANNEL-POSTRTG 3`, "iptables nat FLANNEL-POSTRTG does not have the expected rules"},
		{iptablesNFT, `ip6tables -F FORWARD`, "ip6tables filter FORWARD does not jump to FLANNEL-FWD"},
		{iptablesLegacy, `iptables -F FORWARD; iptables -F FLANNEL-FWD; iptables -X FLANNEL-FWD`, "iptables filter has no chain FLANNEL-FWD"},
		{iptablesLegacy, `iptables -t nat -A POSTROUTING -j FLANNEL-POSTRTG`,
			"iptables nat POSTROUTING has a superfluous rule: -A POSTROUTING -j FLANNEL-POSTRTG"},
		{nftTables, `nft flush chain ip flannel-ipv4 forward`, "table ip flannel-ipv4 forward does not have the expected rules"},
		{nftTables, `nft add chain ip flannel-ipv4 forward { policy drop\; }`,
			"table ip flannel-ipv4 has chain forward as type filter hook forward priority 0 policy drop"},
	} {
		l := newLab(t, tt.fl)
		r := newRules(t, wanted(tt.fl))
		l.apply(r)
		l.writes()
		l.sh(tt.script)
		what, err := l.differences(r)
		if err != nil || !strings.HasPrefix(strings.Join(what, "\n"), tt.want) {
			t.Errorf("%s: got %q, %v, want %q", tt.script, what, err, tt.want)
		}
		if w := l.writes(); w != nil {
			t.Errorf("Differences writes: %q", w)
		}
	}
}

func TestRulesFollowSubnetAndNetwork(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		first := newRules(t, wanted(fl))
		l.apply(first)
		w := wanted(fl)
		w.IPv4.Subnet = netip.MustParsePrefix("10.5.9.1/24") // as subnet.env has it
		w.IPv6 = Pods{netip.MustParsePrefix("fd00:10:6::/48"), netip.MustParsePrefix("fd00:10:6:9::/64")}
		for _, r := range []*Rules{first, newRules(t, w)} { // without a restart, and with one
			set(t, r, w)
			l.apply(r)
			want := strings.NewReplacer("10.5.1.0/24", "10.5.9.0/24", "10:5:1::", "10:6:9::", "10:5::", "10:6::").Replace(golden(t, fl))
			if got := l.dump(fl); got != want {
				t.Errorf("changes from what is wanted\n%s", changes(want, got))
			}
		}
	})
}

func TestWhatIsNoLongerWantedIsRemoved(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		r := newRules(t, wanted(fl))
		for _, tt := range []struct {
			name        string
			change      func(*Wanted)
			keeps, goes []string
		}{
			{"IPv6", func(w *Wanted) { w.IPv6 = Pods{} }, []string{"10.5.1.0/24"}, []string{"fd00", "flannel-ipv6"}},
			{"masquerading", func(w *Wanted) { w.Masquerade = false }, []string{"10.5.0.0/16", "fd00:10:5::/48"}, []string{"10.5.1.0/24", "POSTRTG", "postrtg"}},
			{"forwarding", func(w *Wanted) { w.Forward = false }, []string{"10.5.1.0/24"}, []string{"FLANNEL-FWD", "chain forward"}},
			{"all", func(w *Wanted) { w.Forward, w.Masquerade = false, false }, nil, []string{"flannel", "FLANNEL", "10.5."}},
		} {
			set(t, r, wanted(fl))
			l.apply(r)
			w := wanted(fl)
			tt.change(&w)
			set(t, r, w)
			l.apply(r)
			got := l.everything()
			for _, s := range tt.keeps {
				if !strings.Contains(got, s) {
					t.Errorf("without %s: %s is gone\n%s", tt.name, s, got)
				}
			}
			for _, s := range tt.goes {
				if strings.Contains(got, s) {
					t.Errorf("without %s: %s is left\n%s", tt.name, s, got)
				}
			}
		}
	})
}

// TestAnotherToolTakesTheRulesOver: after a change of EnableNFTables, or of the
// iptables that a container brings along, nothing of the old rules stays.
func TestAnotherToolTakesTheRulesOver(t *testing.T) {
	ns := newLab(t, iptablesNFT).ns
	order := []flavour{iptablesNFT, nftTables, iptablesLegacy, iptablesNFT, iptablesLegacy, nftTables}
	for _, fl := range order {
		l := labIn(t, fl, ns)
		l.apply(newRules(t, wanted(fl)))
		if got, want := l.dump(fl), golden(t, fl); got != want {
			t.Fatalf("%s: changes from what is wanted\n%s", fl.name, changes(want, got))
		}
		for _, other := range order {
			if other != fl && strings.Contains(labIn(t, other, ns).dumpOf(other), "10.5.1.0/24") {
				t.Errorf("with %s rules of %s stay", fl.name, other.name)
			}
		}
	}
}

// dumpOf is dump where there may be no table of flannel's.
func (l *lab) dumpOf(fl flavour) string {
	l.t.Helper()
	if fl.nftables {
		return l.sh(`for t in "ip flannel-ipv4" "ip6 flannel-ipv6"; do nft list table $t 2>/dev/null || true; done`)
	}
	return l.dump(fl)
}

// TestTwoNetworksOnOneHostShareTheChains: two daemons keep the rules of a network
// each. The one that starts last clears the chains, as stock does; then both stand, and
// neither writes again.
func TestTwoNetworksOnOneHostShareTheChains(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		second := wanted(fl)
		second.IPv4 = Pods{netip.MustParsePrefix("10.6.0.0/16"), netip.MustParsePrefix("10.6.1.0/24")}
		second.IPv6 = Pods{netip.MustParsePrefix("fd00:10:6::/48"), netip.MustParsePrefix("fd00:10:6:1::/64")}
		a, b := newRules(t, wanted(fl)), newRules(t, second)
		l.apply(a)
		l.apply(b)
		l.apply(a) // its rules come back
		l.apply(b)
		l.apply(a)
		l.writes()
		for range 2 {
			l.apply(a)
			l.apply(b)
		}
		if w := l.writes(); w != nil {
			t.Errorf("they overwrite each other's rules: %q", w)
		}
		text := l.dump(fl)
		for _, want := range []string{"10.5.1.0/24", "10.6.1.0/24", "fd00:10:5:1::/64", "fd00:10:6:1::/64"} {
			if strings.Count(text, want) != 3 {
				t.Errorf("%d rules with %s, want 3 in\n%s", strings.Count(text, want), want, text)
			}
		}
		// A lost rule of one is restored without affecting the other.
		if fl.nftables {
			l.sh("nft add rule ip flannel-ipv4 forward ip saddr 10.5.0.0/16 accept")
		} else {
			l.sh("iptables -D FLANNEL-FWD -s 10.5.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT")
		}
		l.apply(a)
		l.writes()
		l.apply(b)
		if w := l.writes(); w != nil {
			t.Errorf("repairing the one broke the other: %q", w)
		}
		if err := l.cleanUp(); err != nil {
			t.Fatal(err)
		}
		if got := l.everything(); strings.Contains(got, "10.6.") {
			t.Errorf("left\n%s", got)
		}
	})
}
