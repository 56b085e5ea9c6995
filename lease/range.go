package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"
)

// family holds what differs between the two address families in a
// configuration.
type family struct {
	name    string // of the family
	prefix  string // of its keys
	example string
	bits    int // of an address
	// defaultLen is the subnet length if the network is large enough for four such
	// subnets.
	defaultLen int
}

var (
	familyIPv4 = family{"IPv4", "", "10.5.0.0/16", 32, 24}
	familyIPv6 = family{"IPv6", "IPv6", "fd00:5::/48", 128, 64}
)

// maxLen is the longest subnet prefix: a subnet needs its .0 for the tunnel, its .1
// for the bridge, and at least two addresses for pods.
func (f family) maxLen() int { return f.bits - 2 }

// minSplit is the minimum number of bits by which a subnet's prefix must exceed the
// network's. The first subnet is not leased, so one bit would leave room for a single
// node.
const minSplit = 2

// rangeJSON is the text of a Range.
type rangeJSON struct {
	family
	network, subnetLen, subnetMin, subnetMax json.RawMessage
}

// parse does what flannel's CheckNetworkConfig does, and also refuses a SubnetMax
// below SubnetMin, which would leave no subnet to lease.
func (j rangeJSON) parse() (Range, error) {
	var r Range
	if err := j.parseNetwork(&r, j.maxLen()-minSplit, "so that four subnets fit"); err != nil {
		return Range{}, err
	}
	if err := j.parseLen(&r); err != nil {
		return Range{}, err
	}
	// The first subnet is excluded: its first address is that of the network.
	first := setBits(r.Network.Addr(), r.SubnetLen-1, r.SubnetLen)
	last := setBits(r.Network.Addr(), r.Network.Bits(), r.SubnetLen)
	var err error
	if r.SubnetMin, err = j.bound(r, "SubnetMin", j.subnetMin, first); err != nil {
		return Range{}, err
	}
	if r.SubnetMax, err = j.bound(r, "SubnetMax", j.subnetMax, last); err != nil {
		return Range{}, err
	}
	if r.SubnetMax.Less(r.SubnetMin) {
		return Range{}, &ConfigError{j.prefix + "SubnetMax", string(j.subnetMax),
			fmt.Sprintf("%sSubnetMin %s or above", j.prefix, r.SubnetMin)}
	}
	return r, nil
}

// parseAssigned is like parse for subnets assigned by another system: only the
// network counts, and it may be a single subnet.
func (j rangeJSON) parseAssigned() (Range, error) {
	var r Range
	return r, j.parseNetwork(&r, j.maxLen(), "so that a subnet fits")
}

// parseNetwork reads the network, whose prefix may be no longer than longest.
func (j rangeJSON) parseNetwork(r *Range, longest int, why string) error {
	want := fmt.Sprintf("an %s network such as %q", j.name, j.example)
	if absent(j.network) {
		return &ConfigError{j.prefix + "Network", "", fmt.Sprintf(`%s, or "Enable%s": false`, want, j.name)}
	}
	var text string
	if err := field(j.prefix+"Network", j.network, &text, want); err != nil {
		return err
	}
	n, err := netip.ParsePrefix(text)
	if err != nil || n.Addr().BitLen() != j.bits || n.Addr().Is4In6() || n.Bits() == 0 {
		return &ConfigError{j.prefix + "Network", string(j.network), want}
	}
	if n.Bits() > longest {
		return &ConfigError{j.prefix + "Network", string(j.network), fmt.Sprintf("/%d or wider, %s", longest, why)}
	}
	r.Network = n.Masked() // flannel accepts host bits
	if err := checkNetwork(r.Network); err != nil {
		return &ConfigError{j.prefix + "Network", string(j.network), fmt.Sprintf("%s; %v, which is not routed between hosts", want, err)}
	}
	return nil
}

func (j rangeJSON) parseLen(r *Range) error {
	shortest := r.Network.Bits() + minSplit
	want := fmt.Sprintf("a whole number from %d to %d for %sNetwork %s", shortest, j.maxLen(), j.prefix, r.Network)
	var n uint
	if err := field(j.prefix+"SubnetLen", j.subnetLen, &n, want); err != nil {
		return err
	}
	switch {
	case n == 0: // absent; flannel treats an explicit 0 the same
		r.SubnetLen = max(j.defaultLen, shortest)
	case n < uint(shortest) || n > uint(j.maxLen()):
		return &ConfigError{j.prefix + "SubnetLen", string(j.subnetLen), want}
	default:
		r.SubnetLen = int(n)
	}
	return nil
}

// bound parses SubnetMin or SubnetMax. Like flannel it treats the unspecified
// address as an absent key.
func (j rangeJSON) bound(r Range, key string, text json.RawMessage, byDefault netip.Addr) (netip.Addr, error) {
	key = j.prefix + key
	want := fmt.Sprintf("the first address of a /%d in %s, such as %q", r.SubnetLen, r.Network, byDefault)
	var s string
	if err := field(key, text, &s, want); err != nil {
		return netip.Addr{}, err
	}
	if absent(text) {
		return byDefault, nil
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil && a.BitLen() == j.bits && a.IsUnspecified():
		return byDefault, nil
	case err != nil, !r.Network.Contains(a), netip.PrefixFrom(a, r.SubnetLen).Masked().Addr() != a:
		return netip.Addr{}, &ConfigError{key, string(text), want}
	}
	return a, nil
}

// setBits returns a with bits [from, to) set, counted from the most significant
// bit.
func setBits(a netip.Addr, from, to int) netip.Addr {
	b := a.AsSlice()
	for i := from; i < to; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ = netip.AddrFromSlice(b)
	return a
}
