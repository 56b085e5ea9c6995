package lease

import (
	"cmp"
	"fmt"
	"net/netip"
)

// OutsideError reports a lease with a subnet outside its network.
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
	return fmt.Sprintf("lease %s of %s: %s %s is outside the network %s",
		e.Lease.Key(), e.Lease.node(), e.Field, e.Subnet, e.Network)
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
// the network of c or the other leases. Each field of a lease is reported to conflict
// with at most one other lease; if it overlaps several, with the one that has the
// widest subnet.
func Check(c *Config, leases []Lease) []error {
	var errs []error
	for _, f := range subnetFields {
		errs = append(errs, checkOutside(leases, f.name, f.of, f.network(c))...)
		for _, err := range checkOverlap(leases, -1, f.name, f.of) {
			errs = append(errs, err)
		}
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

func checkPublic(leases []Lease, field string, of func(Lease) netip.Addr) []error {
	var errs []error
	first := make(map[netip.Addr]int, len(leases))
	for i, l := range leases {
		a := of(l)
		if j, taken := first[a]; taken && a.IsValid() {
			errs = append(errs, conflict(leases, j, i, field, of))
			continue
		}
		first[a] = i
	}
	return errs
}

// node describes the holder of l, for messages.
func (l Lease) node() netip.Addr { return cmp.Or(l.PublicIP, l.PublicIPv6) }

// special are the prefixes whose packets the kernel does not route between hosts.
var special = []struct {
	netip.Prefix
	name string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network"},       // RFC 1122, section 3.2.1.3
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},         // RFC 1122, section 3.2.1.3
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},    // RFC 3927
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},        // RFC 5771
	{netip.MustParsePrefix("::1/128"), "loopback"},             // RFC 4291, section 2.5.3
	{netip.MustParsePrefix("::/96"), "IPv4-compatible"},        // RFC 4291, section 2.5.5.1; with the unspecified address
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},    // RFC 4291, section 2.5.5.2
	{netip.MustParsePrefix("fe80::/10"), "link-local"},         // RFC 4291, section 2.5.6
	{netip.MustParsePrefix("ff00::/8"), "multicast"},           // RFC 4291, section 2.7
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"}, // RFC 919
}

// checkNetwork returns an error if p cannot be a network of pods.
func checkNetwork(p netip.Prefix) error {
	for _, s := range special {
		// Networks in 240.0.0.0/4, the last address included, are in use.
		if s.Overlaps(p) && s.name != "broadcast" {
			return fmt.Errorf("it overlaps %s (%s)", s.Prefix, s.name)
		}
	}
	return nil
}

// CheckPublic returns an error if a cannot be the address at which other nodes reach
// a node, judging by the address alone. IPv4 link-local addresses are accepted: nodes
// may share a cable.
func CheckPublic(a netip.Addr) error {
	for _, s := range special {
		if s.Contains(a) && (s.name != "link-local" || a.Is6()) {
			return fmt.Errorf("%s is in %s (%s), which other nodes cannot reach", a, s.Prefix, s.name)
		}
	}
	return nil
}
