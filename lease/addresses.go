package lease

import (
	"fmt"
	"net/netip"
)

// special are the prefixes whose packets the kernel does not route between hosts.
var special = []struct {
	netip.Prefix
	name string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this host"},          // RFC 1122, section 3.2.1.3
	{netip.MustParsePrefix("127.0.0.0/8"), "the loopback"},     // RFC 1122, section 3.2.1.3
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},    // RFC 3927
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},        // RFC 5771
	{netip.MustParsePrefix("::/96"), "the loopback"},           // RFC 4291, section 2.5
	{netip.MustParsePrefix("::ffff:0:0/96"), "mapped IPv4"},    // RFC 4291, section 2.5.5.2
	{netip.MustParsePrefix("fe80::/10"), "link-local"},         // RFC 4291, section 2.5.6
	{netip.MustParsePrefix("ff00::/8"), "multicast"},           // RFC 4291, section 2.7
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"}, // RFC 919
}

// checkNetwork returns an error if p cannot be a network of pods.
func checkNetwork(p netip.Prefix) error {
	for _, s := range special {
		// Networks in 240.0.0.0/4, the last address included, are in use.
		if s.Overlaps(p) && s.name != "broadcast" {
			return fmt.Errorf("%s is %s", s.Prefix, s.name)
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
			return fmt.Errorf("%s is %s, so other nodes cannot reach it", a, s.name)
		}
	}
	return nil
}
