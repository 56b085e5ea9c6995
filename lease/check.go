package lease

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// OutsideError says that a lease has a subnet which its network does not hold.
type OutsideError struct {
	Lease   Lease
	Index   int    // in the checked leases
	Field   string // "Subnet" or "IPv6Subnet"
	Subnet  netip.Prefix
	Network netip.Prefix // invalid if the network has no such address family
}

func (e *OutsideError) Error() string {
	if !e.Network.IsValid() {
		return fmt.Sprintf("lease %s of %s: %s is set, but the network config does not enable its address family",
			e.Lease.Key(), e.Lease.node(), e.Field)
	}
	return fmt.Sprintf("lease %s of %s: %s %s is not inside the network %s",
		e.Lease.Key(), e.Lease.node(), e.Field, e.Subnet, e.Network)
}

// ConflictError says that two leases exclude each other: their subnets overlap, or
// two nodes claim one public address.
type ConflictError struct {
	A, B           Lease
	IndexA, IndexB int    // in the checked leases; IndexA is the greater
	Field          string // "Subnet", "IPv6Subnet", "PublicIP" or "PublicIPv6"
	ValueA, ValueB string // of Field
}

func (e *ConflictError) Error() string {
	what := fmt.Sprintf("both have %s %s", e.Field, e.ValueA)
	if e.ValueA != e.ValueB {
		what = fmt.Sprintf("%s %s overlaps %s", e.Field, e.ValueA, e.ValueB)
	}
	return fmt.Sprintf("leases %s of %s and %s of %s: %s", e.A.Key(), e.A.node(), e.B.Key(), e.B.node(), what)
}

// subnetFields are the two families of a lease's subnets.
var subnetFields = []struct {
	name    string
	of      func(Lease) netip.Prefix
	network func(*Config) netip.Prefix
}{
	{"Subnet", func(l Lease) netip.Prefix { return l.Subnet }, func(c *Config) netip.Prefix { return c.IPv4.Network }},
	{"IPv6Subnet", func(l Lease) netip.Prefix { return l.IPv6Subnet }, func(c *Config) netip.Prefix { return c.IPv6.Network }},
}

// publicFields are the two families of a node's public addresses.
var publicFields = []struct {
	name string
	of   func(Lease) netip.Addr
}{
	{"PublicIP", func(l Lease) netip.Addr { return l.PublicIP }},
	{"PublicIPv6", func(l Lease) netip.Addr { return l.PublicIPv6 }},
}

// Check returns an *OutsideError or a *ConflictError for each lease that does not fit
// the network of c or the other leases. A field of a lease is in conflict with one
// other lease at most, even where it overlaps several: with the one that has the
// widest subnet.
func Check(c *Config, leases []Lease) []error {
	var errs []error
	for _, f := range subnetFields {
		errs = append(errs, checkOutside(leases, f.name, f.of, f.network(c))...)
		errs = append(errs, checkOverlap(leases, f.name, f.of)...)
	}
	for _, f := range publicFields {
		errs = append(errs, checkPublic(leases, f.name, f.of)...)
	}
	return errs
}

func checkOutside(leases []Lease, field string, of func(Lease) netip.Prefix, network netip.Prefix) []error {
	var errs []error
	for i, l := range leases {
		p := of(l)
		inside := network.IsValid() && network.Bits() <= p.Bits() && network.Contains(p.Addr())
		if p.IsValid() && !inside {
			errs = append(errs, &OutsideError{l, i, field, p, network})
		}
	}
	return errs
}

// checkOverlap walks the subnets in the order of their addresses, the wider first:
// two prefixes nest or are disjoint, so one that overlaps any before it overlaps the
// last that overlapped none.
func checkOverlap(leases []Lease, field string, of func(Lease) netip.Prefix) []error {
	var order []int
	for i, l := range leases {
		if of(l).IsValid() {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return of(leases[a]).Compare(of(leases[b])) })
	var errs []error
	last := -1
	for _, i := range order {
		if last >= 0 && of(leases[last]).Overlaps(of(leases[i])) {
			errs = append(errs, conflict(leases, last, i, field, of))
			continue
		}
		last = i
	}
	return errs
}

func checkPublic(leases []Lease, field string, of func(Lease) netip.Addr) []error {
	var errs []error
	first := make(map[netip.Addr]int, len(leases))
	for i, l := range leases {
		a := of(l)
		if j, taken := first[a]; taken && a.IsValid() {
			errs = append(errs, conflict(leases, i, j, field, of))
			continue
		}
		first[a] = i
	}
	return errs
}

func conflict[V fmt.Stringer](leases []Lease, i, j int, field string, of func(Lease) V) error {
	i, j = max(i, j), min(i, j)
	a, b := leases[i], leases[j]
	return &ConflictError{a, b, i, j, field, of(a).String(), of(b).String()}
}

// node names the holder of l, for messages.
func (l Lease) node() netip.Addr { return cmp.Or(l.PublicIP, l.PublicIPv6) }
