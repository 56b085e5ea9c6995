package lease

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// owned returns a lease of the node with the last byte n.
func owned(n byte, subnet, subnet6 string) Lease {
	l := Lease{Attrs: Attrs{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, n})}}
	if subnet != "" {
		l.Subnet = netip.MustParsePrefix(subnet)
	}
	if subnet6 != "" {
		l.IPv6Subnet = netip.MustParsePrefix(subnet6)
	}
	return l
}

func subnetsOf(leases []Lease) (all []string) {
	for _, l := range leases {
		for _, s := range l.Subnets() {
			all = append(all, s.String())
		}
	}
	return all
}

func TestOverlappingSubnetsGoToTheirRightfulOwner(t *testing.T) {
	own := owned(1, "10.5.1.0/24", "")
	for name, tt := range map[string]struct {
		leases    []Lease
		kept      []string
		conflicts []string
	}{
		"none": {[]Lease{own, owned(2, "10.5.2.0/24", "")}, []string{"10.5.1.0/24", "10.5.2.0/24"}, nil},
		"half of a peer's": {
			[]Lease{own, owned(2, "10.5.2.0/24", ""), owned(3, "10.5.2.128/25", "")},
			[]string{"10.5.1.0/24", "10.5.2.0/24"},
			[]string{"Subnet 10.5.2.128/25 overlaps 10.5.2.0/24"},
		},
		"both halves and one address": {
			[]Lease{owned(3, "10.5.2.0/25", ""), owned(4, "10.5.2.128/25", ""), owned(2, "10.5.2.0/24", ""), owned(5, "10.5.2.7/32", "")},
			[]string{"10.5.2.0/24"},
			[]string{
				"Subnet 10.5.2.0/24 overlaps 10.5.2.0/25",
				"Subnet 10.5.2.7/32 overlaps 10.5.2.0/24",
				"Subnet 10.5.2.0/24 overlaps 10.5.2.128/25",
			},
		},
		"a part of this node's": {
			[]Lease{own, owned(2, "10.5.1.64/26", "")},
			[]string{"10.5.1.0/24"},
			[]string{"Subnet 10.5.1.64/26 overlaps 10.5.1.0/24"},
		},
		"one that has this node's inside": {
			[]Lease{own, owned(2, "10.5.0.0/16", ""), owned(3, "10.5.3.0/24", "")},
			[]string{"10.5.1.0/24", "10.5.3.0/24"},
			[]string{"Subnet 10.5.0.0/16 overlaps 10.5.1.0/24"},
		},
		"one family of two": {
			[]Lease{own, owned(2, "10.5.2.0/24", "fd00:5:2::/64"), owned(3, "10.5.2.4/30", "fd00:5:3::/64")},
			[]string{"10.5.1.0/24", "10.5.2.0/24", "fd00:5:2::/64", "fd00:5:3::/64"},
			[]string{"Subnet 10.5.2.4/30 overlaps 10.5.2.0/24"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := fmt.Sprint(tt.leases)
			kept, conflicts := Rightful(tt.leases, own.Key())
			if got := subnetsOf(kept); !slices.Equal(got, tt.kept) {
				t.Errorf("kept %v, want %v", got, tt.kept)
			}
			var got []string
			for _, c := range conflicts {
				_, text, _ := strings.Cut(c.Error(), ": ")
				got = append(got, text)
			}
			if !slices.Equal(got, tt.conflicts) {
				t.Errorf("conflicts %q, want %q", got, tt.conflicts)
			}
			if fmt.Sprint(tt.leases) != before {
				t.Error("the leases were changed")
			}
		})
	}
}

// Of random leases what stays never overlaps, and nothing goes without reason.
func TestWhatStaysNeverOverlaps(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		seen := make(map[netip.Prefix]bool)
		var leases []Lease
		for n := range 20 {
			s := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(rnd.IntN(4)), byte(rnd.IntN(256))}), 22+rnd.IntN(9)).Masked()
			if !seen[s] {
				seen[s] = true
				leases = append(leases, owned(byte(n+1), s.String(), ""))
			}
		}
		own := leases[rnd.IntN(len(leases))]
		kept, conflicts := Rightful(leases, own.Key())
		if len(kept)+len(conflicts) != len(leases) {
			t.Fatalf("%d kept, %d conflicts, of %d", len(kept), len(conflicts), len(leases))
		}
		for i, a := range kept {
			for _, b := range kept[i+1:] {
				if a.Subnet.Overlaps(b.Subnet) {
					t.Fatalf("%s and %s both stay", a.Subnet, b.Subnet)
				}
			}
		}
		if !slices.ContainsFunc(kept, func(l Lease) bool { return l.Subnet == own.Subnet }) {
			t.Fatalf("the own subnet %s is lost", own.Subnet)
		}
		for _, c := range conflicts {
			if !c.A.Subnet.Overlaps(c.B.Subnet) {
				t.Fatal(c)
			}
		}
	}
}
