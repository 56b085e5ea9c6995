package rules

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// foreign are rules of others that flannel's stand between: kube-proxy's,
// Docker's, an administrator's.
const foreign = `
for ipt in iptables ip6tables; do for kind in nft legacy; do
	f=$ipt-$kind
	$f -t nat -N KUBE-POSTROUTING
	$f -t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
	$f -t nat -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
	$f -t nat -A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
	$f -t nat -A POSTROUTING -m comment --comment "not \"flanneld masq\", it's \\\\ mine" -j RETURN
	$f -t nat -N FLANNEL-POSTRTG-MINE
	$f -t nat -A POSTROUTING -j FLANNEL-POSTRTG-MINE
	$f -N DOCKER-USER
	$f -A FORWARD -j DOCKER-USER
	$f -A FORWARD -i cni0 -m comment --comment "flanneld" -j ACCEPT
	$f -A INPUT -p tcp --dport 22 -j ACCEPT
	$f -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
done; done
iptables-nft -P FORWARD DROP
iptables-legacy -P FORWARD DROP
nft add table inet flannel
nft add chain inet flannel postrtg "{ type nat hook postrouting priority 99; }"
nft add rule inet flannel postrtg ip saddr 10.5.0.0/16 oifname lo return
nft add table ip flannel-ipv4-mine
`

// TestForeignRulesSurvive: creating, changing and removing flannel's rules leaves
// the rules of others as they were, in their order.
func TestForeignRulesSurvive(t *testing.T) {
	each(t, func(t *testing.T, fl flavour) {
		l := newLab(t, fl)
		l.sh(foreign)
		before := withoutOurs(l.rulesets())
		unchanged := func(when string) {
			t.Helper()
			if after := withoutOurs(l.rulesets()); after != before {
				t.Errorf("%s changes\n%s", when, changes(before, after))
			}
		}
		r := newRules(t, wanted(fl))
		l.apply(r)
		unchanged("apply")
		for _, d := range disturbances[fl.nftables] {
			if !flushes.MatchString(d.script) {
				l.shMay(d.script)
			}
		}
		l.apply(r)
		unchanged("repairing")
		w := wanted(fl)
		w.IPv4.Subnet = netip.MustParsePrefix("10.5.9.0/24")
		set(t, r, w)
		l.apply(r)
		if err := l.cleanUp(); err != nil {
			t.Fatal(err)
		}
		if got := l.rulesets(); got != before {
			t.Errorf("clean-up changes\n%s", changes(before, got))
		}
	})
}

// flushes finds calls that would remove the rules of others.
var flushes = regexp.MustCompile(`-F (POSTROUTING|FORWARD|;)|-t \$t -F|flush ruleset`)

// shMay is sh for a script that may fail.
func (l *lab) shMay(script string) { l.sh("(" + script + "\n) || true") }

// rulesets is the text of all rules of the namespace, without counters.
func (l *lab) rulesets() string {
	l.t.Helper()
	return withoutComments(l.sh(`nft list tables; nft list table inet flannel 2>/dev/null || true
for f in iptables ip6tables; do for k in nft legacy; do $f-$k-save; done; done`))
}

// withoutOurs drops the lines of flannel's chains and tables.
func withoutOurs(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		switch {
		case strings.Contains(line, "FLANNEL-POSTRTG ") || strings.HasSuffix(line, "FLANNEL-POSTRTG\n"):
		case strings.Contains(line, "FLANNEL-FWD"):
		case line == "table ip flannel-ipv4\n" || line == "table ip6 flannel-ipv6\n":
		default:
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

// TestCleanupLeavesNothingOfFlannels: stock flannel has run here with each tool,
// long ago without chains of its own, and twilld after it.
func TestCleanupLeavesNothingOfFlannels(t *testing.T) {
	ns := newLab(t, iptablesNFT).ns
	for _, fl := range []flavour{iptablesLegacy, iptablesNFT, nftTables} {
		labIn(t, fl, ns).load(t, fl)
	}
	l := labIn(t, iptablesNFT, ns)
	l.sh(`for k in nft legacy; do
		iptables-$k -t nat -I POSTROUTING -s 10.244.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE
		iptables-$k -I FORWARD -d 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
	done
	nft add chain ip flannel-ipv4 masqueradeTest`)
	if err := l.cleanUp(); err != nil {
		t.Fatal(err)
	}
	if got := strings.ToLower(l.everything()); strings.Contains(got, "flannel") || strings.Contains(got, "10.5.") {
		t.Errorf("left:\n%s", got)
	}
	l.writes()
	if err := l.cleanUp(); err != nil {
		t.Fatal(err)
	}
	if w := l.writes(); w != nil {
		t.Errorf("a second clean-up writes: %q", w)
	}
}

func TestCleanupOfACleanHostMakesNothing(t *testing.T) {
	l := newLab(t, iptablesNFT)
	if err := l.cleanUp(); err != nil {
		t.Fatal(err)
	}
	if w := l.writes(); w != nil {
		t.Errorf("writes: %q", w)
	}
	// Legacy iptables creates a table by reading it.
	if got := l.sh("nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"); got != "" {
		t.Errorf("made\n%s", got)
	}
}

func TestCleanupNeedsNoTools(t *testing.T) {
	l := newLab(t, iptablesNFT)
	t.Setenv("PATH", t.TempDir())
	if err := l.cleanUp(); err != nil {
		t.Error(err)
	}
}

// TestChainThatOthersJumpToIsEmptiedAndNamed: their rule is not changed, and
// flannel's have no effect.
func TestChainThatOthersJumpToIsEmptiedAndNamed(t *testing.T) {
	for _, fl := range []flavour{iptablesNFT, iptablesLegacy} {
		t.Run(fl.name, func(t *testing.T) {
			l := newLab(t, fl)
			l.apply(newRules(t, wanted(fl)))
			l.sh("iptables -N MINE; iptables -A MINE -j FLANNEL-FWD")
			err := l.cleanUp()
			if err == nil || !strings.Contains(err.Error(), "remove filter FLANNEL-FWD") || !strings.Contains(err.Error(), "grep FLANNEL-FWD") {
				t.Errorf("got %v", err)
			}
			got := l.sh("iptables -S; iptables -t nat -S; ip6tables -S")
			if !strings.Contains(got, "-A MINE -j FLANNEL-FWD") || strings.Contains(got, "10.5.") || strings.Contains(got, "flanneld") {
				t.Errorf("left\n%s", got)
			}
			l.sh("iptables -F MINE")
			if err := l.cleanUp(); err != nil {
				t.Error(err)
			}
			if got := l.sh("iptables -S"); strings.Contains(got, "FLANNEL") {
				t.Errorf("left\n%s", got)
			}
		})
	}
}

// TestCleanupGoesOnWhereSomethingFails: legacy iptables for IPv4 fails, all
// others are still cleaned up.
func TestCleanupGoesOnWhereSomethingFails(t *testing.T) {
	l := newLab(t, iptablesLegacy)
	l.apply(newRules(t, wanted(iptablesLegacy)))
	l.load(t, nftTables)
	if err := os.Remove(filepath.Join(l.bin, "iptables-restore")); err != nil {
		t.Fatal(err)
	}
	l.program("iptables-restore", "false")
	l.program("iptables-legacy-restore", "false")
	err := l.cleanUp()
	if err == nil || !strings.Contains(err.Error(), "clean up IPv4 rules") {
		t.Errorf("got %v", err)
	}
	if got := l.sh("ip6tables-legacy-save; nft list ruleset"); strings.Contains(got, "FLANNEL") || strings.Contains(got, "flannel") {
		t.Errorf("left\n%s", got)
	}
}

// TestCleanupPassesOverWhatTheKernelDoesNotHave: where it has no nf_tables, nft
// and iptables of that kind cannot have left anything.
func TestCleanupPassesOverWhatTheKernelDoesNotHave(t *testing.T) {
	l := newLab(t, iptablesLegacy)
	l.apply(newRules(t, wanted(iptablesLegacy)))
	for _, p := range []string{"nft", "iptables-nft", "ip6tables-nft"} {
		l.program(p, `sh -c '[ "$*" = --version ] && echo "v1.8.9 (nf_tables)" || { echo "Failed to initialize nft: Protocol not supported" >&2; exit 1; }' sh "$@"`)
	}
	if err := l.cleanUp(); err != nil {
		t.Error(err)
	}
	if got := l.sh("iptables-legacy-save; ip6tables-legacy-save"); strings.Contains(got, "FLANNEL") {
		t.Errorf("left\n%s", got)
	}
}
