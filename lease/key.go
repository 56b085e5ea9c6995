package lease

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// Key returns the name of l. For a lease without an IPv4 subnet it contains
// flannel's "0.0.0.0-0" instead.
func (l Lease) Key() Key {
	k := "0.0.0.0-0"
	if l.Subnet.IsValid() {
		k = keyText(l.Subnet)
	}
	if l.IPv6Subnet.IsValid() {
		k += "&" + keyText(l.IPv6Subnet)
	}
	return Key(k)
}

// keyText returns a prefix with a hyphen in place of the slash, which separates
// parts of an etcd key. The colons of IPv6 stay (flannel's pkg/ip
// IP6Net.StringSep).
func keyText(p netip.Prefix) string {
	return fmt.Sprintf("%s-%d", p.Addr(), p.Bits())
}

// ParseKey returns the subnets that k names; one of them may be invalid. A key
// written by hand may spell IPv6 differently, so stores compare the Key of the
// parsed lease, not the text they read.
func ParseKey(k Key) (subnet, ipv6Subnet netip.Prefix, err error) {
	v4, v6, dual := strings.Cut(string(k), "&")
	if v4 != "0.0.0.0-0" || !dual {
		if subnet, err = parseKeyText(v4, familyIPv4); err != nil {
			return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("lease key %q: %w", jsonerr.Cut(string(k), longestKey), err)
		}
	}
	if dual {
		if ipv6Subnet, err = parseKeyText(v6, familyIPv6); err != nil {
			return netip.Prefix{}, netip.Prefix{}, fmt.Errorf("lease key %q: %w", jsonerr.Cut(string(k), longestKey), err)
		}
	}
	return subnet, ipv6Subnet, nil
}

// longestKey bounds the bytes of a key that a message contains. The keys of subnets are
// shorter.
const longestKey = 100

func parseKeyText(s string, f family) (netip.Prefix, error) {
	// An address contains neither slash nor hyphen, so the last hyphen is the
	// separator.
	i := strings.LastIndexByte(s, '-')
	if i < 0 || strings.IndexByte(s, '/') >= 0 {
		return netip.Prefix{}, fmt.Errorf("%q is not <%s address>-<length>", jsonerr.Cut(s, longestKey), f.name)
	}
	p, err := netip.ParsePrefix(s[:i] + "/" + s[i+1:])
	switch {
	case err != nil || p.Addr().BitLen() != f.bits || p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%q is not <%s address>-<length>", jsonerr.Cut(s, longestKey), f.name)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%q has host bits set; the subnet is %q", jsonerr.Cut(s, longestKey), keyText(p.Masked()))
	}
	return p, nil
}
