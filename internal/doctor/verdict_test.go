package doctor

import (
	"context"
	"maps"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

var webPacket = Packet{In: "cni0", Out: "flannel0", Src: netip.MustParseAddr("10.5.1.2"), Dst: netip.MustParseAddr("10.5.2.2"), Proto: "tcp", Port: 80}

func TestVerdictNamesTheRuleThatDecides(t *testing.T) {
	const drop = "-A FORWARD -p tcp -m tcp --dport 80 -j DROP"
	for name, tt := range map[string]struct {
		filter string
		want   Verdict
	}{
		"no rules":   {"-P FORWARD ACCEPT\n", Verdict{Accept: true}},
		"a policy":   {"-P FORWARD DROP\n", Verdict{Rule: "the policy DROP of FORWARD", Remedy: "iptables -P FORWARD ACCEPT"}},
		"a drop":     {"-P FORWARD ACCEPT\n" + drop + "\n", Verdict{Rule: drop, Remedy: "iptables -D" + strings.TrimPrefix(drop, "-A")}},
		"an accept":  {"-P FORWARD DROP\n-A FORWARD -s 10.5.0.0/16 -j ACCEPT\n", Verdict{Accept: true, Rule: "-A FORWARD -s 10.5.0.0/16 -j ACCEPT"}},
		"other port": {"-P FORWARD ACCEPT\n-A FORWARD -p tcp -m tcp --dport 443 -j DROP\n", Verdict{Accept: true}},
		"unknown":    {"-P FORWARD ACCEPT\n-A FORWARD -m set --match-set bad src -j DROP\n", Verdict{Accept: true, Unless: "-A FORWARD -m set --match-set bad src -j DROP"}},
	} {
		if got := ParseFirewall(tt.filter, "").Forward(webPacket); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", name, got, tt.want)
		}
	}
	masquerade := "-A POSTROUTING -s 10.5.1.0/24 ! -d 10.5.1.0/24 -j MASQUERADE"
	if got, want := ParseFirewall("", masquerade+"\n").Source(webPacket), (Verdict{Rule: masquerade, Remedy: "iptables -t nat -D" + strings.TrimPrefix(masquerade, "-A")}); got != want {
		t.Errorf("source: got %+v, want %+v", got, want)
	}
}

// The kernel's own lists are read: rules of iptables and nftables decide, their counters are
// found, and the remedies are accepted.
func TestFirewallOfAHostIsReadWithItsCounters(t *testing.T) {
	p := &patient{T: t, ns: netlabtest.Namespace(t, "host")}
	read := func() (f *Firewall) {
		t.Helper()
		err := p.ns.Do(func() (err error) {
			f, err = ReadFirewall(context.Background(), false)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	p.run("iptables -P OUTPUT DROP; iptables -A OUTPUT -d 127.0.0.9 -m comment --comment 'a -c 1 2 -j b' -j REJECT; iptables -A OUTPUT -o lo -j ACCEPT; ip link set lo up")
	p.run("nft 'add table inet guard; add chain inet guard f { type filter hook forward priority 10; policy accept; }; add rule inet guard f ip daddr 10.5.2.0/24 counter drop'")
	before := read()
	if err := p.ns.Do(func() error {
		_, err := echo.Once(t.Context(), []echo.Ping{{To: netip.MustParseAddr("127.0.0.9"), Size: 64}, {To: netip.MustParseAddr("127.0.0.9"), Size: 65}}, time.Millisecond)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	after := read()
	rule := `-A OUTPUT -d 127.0.0.9/32 -m comment --comment "a -c 1 2 -j b" -j REJECT --reject-with icmp-port-unreachable`
	if n := after.Drops()[rule] - before.Drops()[rule]; n != 2 {
		t.Errorf("the rule has dropped %d packets, want 2: %v", n, after.Drops())
	}
	v := after.Forward(webPacket)
	if v.Accept || !strings.Contains(v.Rule, "nftables chain inet guard f") {
		t.Errorf("the rule of nftables: %+v", v)
	}
	if _, counted := after.Drops()[v.Rule]; !counted {
		t.Errorf("%q is not counted: %v", v.Rule, maps.Clone(after.Drops()))
	}
	p.run(v.Remedy)
	p.run(after.Remedy(rule))
	p.run(after.Remedy("-P OUTPUT DROP"))
	if f := read(); !f.Forward(webPacket).Accept || len(f.Drops()) > 0 {
		t.Errorf("after the remedies: %+v, %v", f.Forward(webPacket), f.Drops())
	}
}
