//go:build !noetcd

package etcd

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/twillnet/twill/lease"
)

func parse(t *testing.T, text string) *lease.Config {
	t.Helper()
	c, err := lease.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func prefixes(texts ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range texts {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestFreeSubnetsAreTheFirstThatOverlapNone(t *testing.T) {
	for _, tt := range []struct {
		config string
		ipv6   bool
		taken  []netip.Prefix
		most   int
		want   []netip.Prefix
	}{
		{`{"Network":"10.5.0.0/16"}`, false, nil, 2, prefixes("10.5.1.0/24", "10.5.2.0/24")},
		{`{"Network":"10.5.0.0/16"}`, false, prefixes("10.5.1.0/24", "10.5.3.64/26", "fd00::/64"), 2, prefixes("10.5.2.0/24", "10.5.4.0/24")},
		{`{"Network":"10.5.0.0/16"}`, false, prefixes("10.5.0.0/20"), 2, prefixes("10.5.16.0/24", "10.5.17.0/24")},
		{`{"Network":"10.5.0.0/16"}`, false, prefixes("10.5.0.0/16"), 2, nil},
		{`{"Network":"10.5.0.0/16"}`, false, prefixes("10.0.0.0/8"), 2, nil},
		{`{"Network":"10.5.0.0/28"}`, false, nil, 9, prefixes("10.5.0.4/30", "10.5.0.8/30", "10.5.0.12/30")},
		{`{"Network":"255.255.0.0/16","SubnetLen":18}`, false, nil, 9, prefixes("255.255.64.0/18", "255.255.128.0/18", "255.255.192.0/18")}, // up to the end of all addresses
		{`{"Network":"255.255.0.0/16","SubnetLen":18}`, false, prefixes("255.255.128.0/17"), 9, prefixes("255.255.64.0/18")},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/32"}`, true, prefixes("fd00:0:0:1::/64"), 2, prefixes("fd00:0:0:2::/64", "fd00:0:0:3::/64")},
	} {
		c := parse(t, tt.config)
		r := c.IPv4
		if tt.ipv6 {
			r = c.IPv6
		}
		got := newUsed(r, tt.taken).free(tt.most)
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s without %v: got %v, want %v", tt.config, tt.taken, got, tt.want)
		}
	}
}

// TestChosenSubnetsOverlapNone fills networks whose taken subnets have any
// length, and compares with looking at every pair.
func TestChosenSubnetsOverlapNone(t *testing.T) {
	c := parse(t, `{"Network":"10.5.0.0/20","SubnetLen":26}`)
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var taken []netip.Prefix
		for range random.IntN(10) {
			a := netip.AddrFrom4([4]byte{10, 5, byte(random.IntN(16)), byte(random.IntN(256))})
			taken = append(taken, netip.PrefixFrom(a, 21+random.IntN(10)).Masked())
		}
		free := 0
		for i := 1; i < 64; i++ {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i / 4), byte(i % 4 * 64)}), 26)
			if !slices.ContainsFunc(taken, p.Overlaps) {
				free++
			}
		}
		for left := free; ; left-- {
			l, err := choose(c, taken, lease.Previous{}, firstFree)
			if (err != nil) != (left == 0) {
				t.Fatalf("%d subnets left beside %v: %v", left, taken, err)
			}
			if err != nil {
				break
			}
			if !c.HandsOut(l) || slices.ContainsFunc(taken, l.Subnet.Overlaps) {
				t.Fatalf("got %s beside %v", l.Subnet, taken)
			}
			taken = append(taken, l.Subnet)
		}
	}
}

func TestTheChoiceIsAmongTheFirstFree(t *testing.T) {
	c := parse(t, ipv4Only)
	seen := make(map[netip.Prefix]bool)
	for range 1000 {
		l, err := choose(c, nil, lease.Previous{}, 5)
		if err != nil {
			t.Fatal(err)
		}
		seen[l.Subnet] = true
	}
	for _, p := range prefixes("10.5.1.0/24", "10.5.2.0/24", "10.5.3.0/24", "10.5.4.0/24", "10.5.5.0/24") {
		if !seen[p] {
			t.Errorf("%s was never chosen", p)
		}
	}
	if len(seen) != 5 {
		t.Errorf("%d different subnets, want 5", len(seen))
	}
}
