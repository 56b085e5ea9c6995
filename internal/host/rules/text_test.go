package rules

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestLinesOfIPTablesAreCutIntoWords(t *testing.T) {
	for _, tt := range []struct {
		line string
		want []string
	}{
		{`-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD`,
			[]string{"-A", "FORWARD", "-m", "comment", "--comment", "flanneld forward", "-j", "FLANNEL-FWD"}},
		{`-A X -m comment --comment "it\'s \"a\\b" -j RETURN`, []string{"-A", "X", "-m", "comment", "--comment", `it's "a\b`, "-j", "RETURN"}},
		{`-A X -m comment --comment ""`, []string{"-A", "X", "-m", "comment", "--comment", ""}},
		{`-A X -j RETURN -c 12 3456`, []string{"-A", "X", "-j", "RETURN"}},
		{`-A X -m comment --comment "a -c 1 2"`, []string{"-A", "X", "-m", "comment", "--comment", "a -c 1 2"}},
		{`-P FORWARD ACCEPT`, []string{"-P", "FORWARD", "ACCEPT"}},
		{``, nil},
	} {
		if got := Words(tt.line); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.line, got, tt.want)
		}
	}
}

func TestOnlyJumpsToFlannelsChainAndItsCommentsAreOurs(t *testing.T) {
	for line, want := range map[string]bool{
		`-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG`:       true,
		`-A POSTROUTING -j FLANNEL-POSTRTG`:                                            true,
		`-A POSTROUTING -g FLANNEL-POSTRTG`:                                            true,
		`-A POSTROUTING -s 10.5.0.0/16 -m comment --comment "flanneld masq" -j RETURN`: true,
		`-A POSTROUTING -j FLANNEL-POSTRTG-MINE`:                                       false,
		`-A POSTROUTING -m comment --comment FLANNEL-POSTRTG -j RETURN`:                false,
		`-A POSTROUTING -m comment --comment "not flanneld masq" -j RETURN`:            false,
		`-A POSTROUTING -m comment --comment "-j FLANNEL-POSTRTG" -j RETURN`:           false,
		`-A POSTROUTING -m comment --comment "flanneld forward" -j RETURN`:             false,
		`-A POSTROUTING -s 10.5.0.0/16 ! -d 10.5.0.0/16 -j MASQUERADE`:                 false,
		`-P POSTROUTING ACCEPT`:                                                        false,
	} {
		if got := ours(Words(line), &masquerading); got != want {
			t.Errorf("%s: got %t", line, got)
		}
	}
}

// FuzzSplit: what add writes, split reads, whatever the comment; the quotes are
// those of xtables_save_string.
func FuzzSplit(f *testing.F) {
	for _, comment := range []string{"flanneld masq", `it's "a\b`, "", "-c 1 2", "\x80 "} {
		f.Add(comment)
	}
	f.Fuzz(func(t *testing.T, comment string) {
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `'`, `\'`).Replace(comment)
		words := Words(`-A X --comment "` + quoted + `" -j RETURN`)
		if want := []string{"-A", "X", "--comment", comment, "-j", "RETURN"}; !slices.Equal(words, want) {
			t.Errorf("got %q, want %q", words, want)
		}
		Words(comment) // anything at all
	})
}

func TestRulesOfNftAreReadAsTheyAreWritten(t *testing.T) {
	for _, tt := range []struct{ expr, want string }{
		{`[{"match":{"op":"==","left":{"meta":{"key":"mark"}},"right":16384}},{"return":null}]`, "meta mark 0x4000 return"},
		{`[{"match":{"op":"!=","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":{"prefix":{"addr":"10.5.0.0","len":16}}}},{"accept":null}]`,
			"ip saddr != 10.5.0.0/16 accept"},
		{`[{"match":{"op":"==","left":{"payload":{"protocol":"ip6","field":"daddr"}},"right":"fd00::1"}},{"return":null}]`, "ip6 daddr fd00::1/128 return"},
		{`[{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"eth0"}},{"return":null}]`, `iifname "eth0" return`},
		{`[{"match":{"op":"==","left":{"fib":{"result":"oif","flags":["saddr","iif"]}},"right":false}},{"drop":null}]`, "fib saddr . iif oif missing drop"},
		{`[{"match":{"op":"==","left":{"fib":{"result":"oif","flags":["saddr","iif"]}},"right":true}},{"drop":null}]`,
			`{"match":{"op":"==","left":{"fib":{"result":"oif","flags":["saddr","iif"]}},"right":true}} drop`},
		{`[{"masquerade":{"flags":"fully-random"}}]`, "masquerade fully-random"},
		{`[{"masquerade":{"flags":["fully-random"]}}]`, "masquerade fully-random"},
		{`[{"masquerade":null}]`, "masquerade"},
		{`[{"masquerade":{"flags":["random","persistent"]}}]`, "masquerade random,persistent"},
		// What flannel never writes stays different from all that it writes.
		{`[{"counter":{"packets":0,"bytes":0}},{"accept":null}]`, `{"counter":{"packets":0,"bytes":0}} accept`},
		{`["jump { accept }"]`, `"jump { accept }"`},
		{`[{"match":{"op":"==","left":{"&":[{"meta":{"key":"mark"}},16384]},"right":16384}},{"return":null}]`,
			`{"match":{"op":"==","left":{"&":[{"meta":{"key":"mark"}},16384]},"right":16384}} return`},
	} {
		l := parseListing([]byte(`{"nftables":[{"table":{"name":"t"}},{"chain":{"name":"c"}},{"rule":{"chain":"c","expr":` + tt.expr + `}}]}`))
		if got := l.chains["c"].rules; l.useless != "" || len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: got %q %s, want %q", tt.expr, got, l.useless, tt.want)
		}
	}
}

// TestListingThatNftDoesNotFinishIsRewritten: nft 1.0.6 prints this of a
// dormant table, and exits with 0.
func TestListingThatNftDoesNotFinishIsRewritten(t *testing.T) {
	for _, text := range []string{
		`{"nftables": [{"metainfo": {"json_schema_version": 1}}, {"table": {"family": "ip", "name": "flannel-ipv4", "handle": 1, "flags": `,
		`{"nftables": [{"table": {"family": "ip", "name": "flannel-ipv4", "flags": "dormant"}}]}`,
		`{"nftables": [{"table": {"family": "ip", "name": "flannel-ipv4", "flags": ["dormant"]}}]}`,
		``,
	} {
		if l := parseListing([]byte(text)); l.useless == "" {
			t.Errorf("%s: accepted as it is", text)
		}
	}
}

func FuzzParseListing(f *testing.F) {
	f.Add([]byte(`{"nftables":[{"table":{"name":"t"}},{"chain":{"name":"c","type":"nat","hook":"postrouting","prio":100,"policy":"accept"}},` +
		`{"rule":{"chain":"c","expr":[{"masquerade":{"flags":["fully-random"]}},{"match":{"right":{"prefix":{"addr":"10.5.0.0","len":99}}}}]}}]}`))
	f.Add([]byte(`{"nftables":[{"rule":null},{"rule":{"expr":[null,1,{}]}}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if l := parseListing(text); !l.exists || l.chains == nil {
			t.Errorf("%+v", l)
		}
	})
}

// TestEveryRuleIsInTheTextOfStockFlannel is what can be said without root.
func TestEveryRuleIsInTheTextOfStockFlannel(t *testing.T) {
	text, err := os.ReadFile("testdata/iptables.golden")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		w := wanted(iptablesNFT)
		for _, c := range chains {
			for _, r := range w.target(f, true, true).rules[c] {
				var tx transaction
				tx.add(append([]string{"-A", c.name}, r.iptables(c.comment)...))
				if !strings.Contains(string(text), tx.lines[0]+"\n") {
					t.Errorf("not in the file: %s", tx.lines[0])
				}
			}
		}
	}
}
