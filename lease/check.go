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
	Index   int          // in the checked leases
	Field   string       // "Subnet" or "IPv6Subnet"
	Network netip.Prefix // invalid if the network has no such address family
}

func (e *OutsideError) Error() string {
	if !e.Network.IsValid() {
		return fmt.Sprintf("lease %s of %s: %s is set, but the network config does not enable %s",
			e.Lease.Key(), e.Lease.node(), e.Field, checked(e.Field).name)
	}
	return fmt.Sprintf("lease %s of %s: %s %s is not inside %sNetwork %s",
		e.Lease.Key(), e.Lease.node(), e.Field, e.Lease.subnet(e.Field), checked(e.Field).prefix, e.Network)
}

// ConflictError says that two leases cannot both stand: their subnets overlap,
// or two nodes claim one public address.
type ConflictError struct {
	A, B           Lease
	IndexA, IndexB int    // in the checked leases; IndexA is the greater
	Field          string // "Subnet", "IPv6Subnet", "PublicIP" or "PublicIPv6"
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("leases %s of %s and %s of %s: %s",
		e.A.Key(), e.A.node(), e.B.Key(), e.B.node(), e.Reason())
}

// Reason says what the two leases have in common, without naming them.
func (e *ConflictError) Reason() string {
	switch e.Field {
	case "PublicIP":
		return "both have PublicIP " + e.A.PublicIP.String()
	case "PublicIPv6":
		return "both have PublicIPv6 " + e.A.PublicIPv6.String()
	}
	if a, b := e.A.subnet(e.Field), e.B.subnet(e.Field); a != b {
		return fmt.Sprintf("%s %s and %s overlap", e.Field, a, b)
	}
	return fmt.Sprintf("both have %s %s", e.Field, e.A.subnet(e.Field))
}

// Check says what keeps leases from standing side by side in the network of c:
// an *OutsideError or a *ConflictError for each fault, none if all is well. A
// lease is named in one conflict a field at most, with the one that it is
// nearest to.
func Check(c *Config, leases []Lease) []error {
	var errs []error
	for _, f := range []string{"Subnet", "IPv6Subnet"} {
		errs = append(errs, checkOutside(c, leases, f)...)
		errs = append(errs, checkOverlap(leases, f)...)
	}
	errs = append(errs, checkPublic(leases, "PublicIP")...)
	return append(errs, checkPublic(leases, "PublicIPv6")...)
}

// Check is the function Check for the leases of the set.
func (s *Set) Check(c *Config) []error { return Check(c, s.Leases()) }

func checkOutside(c *Config, leases []Lease, field string) []error {
	network := c.IPv4.Network
	if field == "IPv6Subnet" {
		network = c.IPv6.Network
	}
	var errs []error
	for i, l := range leases {
		p := l.subnet(field)
		if p.IsValid() && !(network.IsValid() && network.Bits() <= p.Bits() && network.Contains(p.Addr())) {
			errs = append(errs, &OutsideError{l, i, field, network})
		}
	}
	return errs
}

// checkOverlap walks the subnets in order of address and length: one that
// overlaps another then overlaps the widest that is still open.
func checkOverlap(leases []Lease, field string) []error {
	var order []int
	for i, l := range leases {
		if l.subnet(field).IsValid() {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return leases[a].subnet(field).Compare(leases[b].subnet(field))
	})
	var errs []error
	open := -1
	for _, i := range order {
		if open >= 0 && leases[open].subnet(field).Overlaps(leases[i].subnet(field)) {
			errs = append(errs, conflict(leases, open, i, field))
			continue
		}
		open = i
	}
	return errs
}

func checkPublic(leases []Lease, field string) []error {
	var errs []error
	first := make(map[netip.Addr]int, len(leases))
	for i, l := range leases {
		a := l.PublicIP
		if field == "PublicIPv6" {
			a = l.PublicIPv6
		}
		if !a.IsValid() {
			continue
		}
		if j, taken := first[a]; taken {
			errs = append(errs, conflict(leases, i, j, field))
			continue
		}
		first[a] = i
	}
	return errs
}

func conflict(leases []Lease, i, j int, field string) error {
	i, j = max(i, j), min(i, j)
	return &ConflictError{leases[i], leases[j], i, j, field}
}

func (l Lease) subnet(field string) netip.Prefix {
	if field == "IPv6Subnet" {
		return l.IPv6Subnet
	}
	return l.Subnet
}

func checked(field string) family {
	if field == "IPv6Subnet" {
		return familyIPv6
	}
	return familyIPv4
}

// node names the holder of l for people.
func (l Lease) node() string {
	return cmp.Or(l.PublicIP, l.PublicIPv6).String()
}
