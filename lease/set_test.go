package lease

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// of makes a lease of a subnet and a public address.
func of(subnet, public string) Lease {
	return Lease{Attrs: Attrs{PublicIP: netip.MustParseAddr(public)}, Subnet: prefix(subnet)}
}

func keys(s *Set) []Key {
	var ks []Key
	for _, l := range s.Leases() {
		ks = append(ks, l.Key())
	}
	return ks
}

func TestSetFoldsUpdates(t *testing.T) {
	a, b, c := of("10.5.1.0/24", "192.0.2.1"), of("10.5.2.0/24", "192.0.2.2"), of("10.5.10.0/24", "192.0.2.3")
	moved := of("10.5.2.0/24", "192.0.2.9")
	renewed := a
	renewed.Expiration = time.Unix(1, 0)
	var s Set
	for _, tt := range []struct {
		name    string
		update  Update
		changed bool
		want    []Key
	}{
		{"delete from nothing", Update{Delete: []Key{a.Key()}}, false, nil},
		{"put", Update{Put: []Lease{c, a}}, true, []Key{a.Key(), c.Key()}},
		{"an error", Update{Err: errors.New("broken")}, false, []Key{a.Key(), c.Key()}},
		{"snapshot", Update{Snapshot: true, Put: []Lease{b, a}}, true, []Key{a.Key(), b.Key()}},
		{"the same snapshot", Update{Snapshot: true, Put: []Lease{a, b}}, false, []Key{a.Key(), b.Key()}},
		{"renewal", Update{Put: []Lease{renewed}}, false, []Key{a.Key(), b.Key()}},
		{"another node", Update{Put: []Lease{moved}}, true, []Key{a.Key(), b.Key()}},
		{"delete", Update{Delete: []Key{a.Key(), c.Key()}}, true, []Key{b.Key()}},
		{"empty snapshot", Update{Snapshot: true}, true, nil},
	} {
		if got := s.Apply(tt.update); got != tt.changed {
			t.Errorf("%s: changed %t, want %t", tt.name, got, tt.changed)
		}
		if got := keys(&s); !slices.Equal(got, tt.want) || s.Len() != len(tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
		if tt.name == "another node" {
			if l, _ := s.Get(moved.Key()); !l.Equal(moved) {
				t.Errorf("%s: got %v", tt.name, l)
			}
		}
	}
}

// TestSetKeepsItsOrder compares with sorting all that there is, of one family, of
// the other, and of both.
func TestSetKeepsItsOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	random := func() Lease {
		n := r.IntN(60)
		l := Lease{Attrs: Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(r.IntN(256))})}}
		if n%3 != 0 {
			l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n &^ 3), 0}), 22+n%4%3)
		}
		if n%3 != 1 {
			l.IPv6Subnet = prefix(fmt.Sprintf("fd00:5:0:%x::/64", n))
		}
		return l
	}
	var s Set
	have := make(map[Key]Lease)
	for range 500 {
		var u Update
		if u.Snapshot = r.IntN(50) == 0; u.Snapshot {
			clear(have)
		}
		for range r.IntN(4) * r.IntN(2*fewChanges/3) {
			l := random()
			u.Put = append(u.Put, l)
			have[l.Key()] = l
		}
		for range r.IntN(4) {
			k := random().Key()
			u.Delete = append(u.Delete, k)
			delete(have, k)
		}
		s.Apply(u)
		var want []Key
		for _, l := range slices.SortedFunc(maps.Values(have), func(a, b Lease) int {
			return cmp.Or(a.Subnet.Compare(b.Subnet), a.IPv6Subnet.Compare(b.IPv6Subnet))
		}) {
			want = append(want, l.Key())
		}
		if got := keys(&s); !slices.Equal(got, want) {
			t.Fatalf("after %+v\n got %v\nwant %v", u, got, want)
		}
		for _, l := range s.Leases() {
			if !l.Equal(have[l.Key()]) {
				t.Fatalf("after %+v: got %+v, want %+v", u, l, have[l.Key()])
			}
		}
	}
}

// The slice that Leases returns is not that of the set.
func TestLeasesOfASetAreTheCallers(t *testing.T) {
	s := NewSet([]Lease{of("10.5.1.0/24", "192.0.2.1"), of("10.5.2.0/24", "192.0.2.2")})
	before := s.Leases()
	s.Apply(Update{Delete: []Key{"10.5.1.0-24"}, Put: []Lease{of("10.5.2.0/24", "192.0.2.9")}})
	if before[0].PublicIP.String() != "192.0.2.1" || before[1].PublicIP.String() != "192.0.2.2" {
		t.Errorf("a later update has made %v of them", before)
	}
	before[0].PublicIP = netip.MustParseAddr("192.0.2.77")
	if got := s.Leases(); got[0].PublicIP.String() != "192.0.2.9" {
		t.Errorf("the caller has made %v of the set", got)
	}
}

func TestDiffLeadsFromOneSetToAnother(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func() []Lease {
		var ls []Lease
		for range r.IntN(20) {
			ls = append(ls, of(fmt.Sprintf("10.5.%d.0/24", r.IntN(20)), fmt.Sprintf("192.0.2.%d", r.IntN(3))))
		}
		return ls
	}
	for range 200 {
		from, to := NewSet(random()), random()
		u := from.Diff(to)
		for _, l := range u.Put {
			if was, ok := from.Get(l.Key()); ok && was.Equal(l) {
				t.Fatalf("the difference puts %v, which did not change", l)
			}
		}
		changed := from.Apply(u)
		if again := from.Diff(to); again.Put != nil || again.Delete != nil {
			t.Fatalf("after the difference was applied there is another: %+v", again)
		}
		if changed != (u.Put != nil || u.Delete != nil) {
			t.Fatalf("Apply says changed = %t for %+v", changed, u)
		}
	}
}

func TestCheckNamesBothLeases(t *testing.T) {
	c, err := ParseConfig([]byte(`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}`))
	if err != nil {
		t.Fatal(err)
	}
	dual := of("10.5.3.0/24", "192.0.2.3")
	dual.IPv6Subnet = prefix("fd00:5:0:3::/64")
	dual.PublicIPv6 = netip.MustParseAddr("2001:db8::3")
	twin := of("10.5.4.0/24", "192.0.2.4")
	twin.IPv6Subnet, twin.PublicIPv6 = dual.IPv6Subnet, dual.PublicIPv6
	for _, tt := range []struct {
		name   string
		leases []Lease
		want   []string
	}{
		{"sound", []Lease{of("10.5.1.0/24", "192.0.2.1"), of("10.5.2.0/24", "192.0.2.2"), dual}, nil},
		{"outside", []Lease{of("10.6.1.0/24", "192.0.2.1")},
			[]string{"lease 10.6.1.0-24 of 192.0.2.1: Subnet 10.6.1.0/24 is outside the network 10.5.0.0/16"}},
		{"wider than the network", []Lease{of("10.4.0.0/14", "192.0.2.1")},
			[]string{"lease 10.4.0.0-14 of 192.0.2.1: Subnet 10.4.0.0/14 is outside the network 10.5.0.0/16"}},
		{"overlap", []Lease{of("10.5.3.0/24", "192.0.2.1"), of("10.5.0.0/20", "192.0.2.2")},
			[]string{"leases 10.5.0.0-20 of 192.0.2.2 and 10.5.3.0-24 of 192.0.2.1: Subnet 10.5.0.0/20 overlaps 10.5.3.0/24"}},
		{"one subnet", []Lease{of("10.5.3.0/24", "192.0.2.1"), of("10.5.3.0/24", "192.0.2.2")},
			[]string{"leases 10.5.3.0-24 of 192.0.2.2 and 10.5.3.0-24 of 192.0.2.1: both have Subnet 10.5.3.0/24"}},
		{"one address", []Lease{of("10.5.1.0/24", "192.0.2.1"), of("10.5.2.0/24", "192.0.2.1")},
			[]string{"leases 10.5.2.0-24 of 192.0.2.1 and 10.5.1.0-24 of 192.0.2.1: both have PublicIP 192.0.2.1"}},
		{"IPv6", []Lease{dual, twin}, []string{
			"leases 10.5.4.0-24&fd00:5:0:3::-64 of 192.0.2.4 and 10.5.3.0-24&fd00:5:0:3::-64 of 192.0.2.3: both have IPv6Subnet fd00:5:0:3::/64",
			"leases 10.5.4.0-24&fd00:5:0:3::-64 of 192.0.2.4 and 10.5.3.0-24&fd00:5:0:3::-64 of 192.0.2.3: both have PublicIPv6 2001:db8::3"}},
	} {
		var got []string
		for _, err := range Check(c, tt.leases) {
			got = append(got, err.Error())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
	}
	c.IPv6 = Range{}
	want := "lease 10.5.3.0-24&fd00:5:0:3::-64 of 192.0.2.3: IPv6Subnet is set, but the network config does not enable its address family"
	if errs := Check(c, []Lease{dual}); len(errs) != 1 || errs[0].Error() != want {
		t.Errorf("got %v\nwant %s", errs, want)
	}
}

// TestCheckFindsEveryOverlap compares with looking at every pair.
func TestCheckFindsEveryOverlap(t *testing.T) {
	c, err := ParseConfig([]byte(`{"Network":"10.0.0.0/8"}`))
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var leases []Lease
		for i := range 2 + r.IntN(12) {
			a := netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(16)), byte(r.IntN(256))})
			p, _ := a.Prefix(20 + r.IntN(12))
			leases = append(leases, of(p.String(), fmt.Sprintf("192.0.2.%d", i)))
		}
		named := make(map[int]bool)
		for _, err := range Check(c, leases) {
			var ce *ConflictError
			if !errors.As(err, &ce) || !ce.A.Subnet.Overlaps(ce.B.Subnet) || ce.IndexA <= ce.IndexB {
				t.Fatalf("%v: %v", leases, err)
			}
			named[ce.IndexA], named[ce.IndexB] = true, true
		}
		for i, a := range leases {
			overlaps := false
			for j, b := range leases {
				overlaps = overlaps || i != j && a.Subnet.Overlaps(b.Subnet)
			}
			if overlaps != named[i] {
				t.Fatalf("lease %d of %v: overlaps %t, named %t", i, leases, overlaps, named[i])
			}
		}
	}
}
