package lease

import (
	"encoding/json"
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

// attrsJSON has the JSON form of flannel's LeaseAttrs: the same fields in the same
// order, and the same ones omitted when empty.
type attrsJSON struct {
	PublicIP      *string
	PublicIPv6    *string
	BackendType   string          `json:",omitempty"`
	BackendData   json.RawMessage `json:",omitempty"`
	BackendV6Data json.RawMessage `json:",omitempty"`
}

// noIPv4 is what flannel writes for a node without IPv4; its IPv4 type has no
// other representation of absence, and its parser refuses null there.
const noIPv4 = "0.0.0.0"

// EncodeAttrs returns what flannel writes as the value of an etcd key, byte for
// byte. It fails only if backend data is not JSON.
//
// It is not a MarshalJSON method, because Lease embeds Attrs and would then
// lose its subnets when encoded.
func EncodeAttrs(a Attrs) ([]byte, error) {
	v4 := noIPv4
	if a.PublicIP.IsValid() {
		v4 = a.PublicIP.String()
	}
	j := attrsJSON{&v4, nil, a.BackendType, a.BackendData, a.BackendV6Data}
	if a.PublicIPv6.IsValid() {
		v6 := a.PublicIPv6.String()
		j.PublicIPv6 = &v6
	}
	b, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode lease of %s: backend data: %w", v4, err)
	}
	return b, nil
}

// DecodeAttrs reads the value of an etcd key. It refuses addresses at which no node can
// be reached, such as loopback addresses. Unknown keys are ignored; keys that
// flannel or an operator omitted are empty in the result.
func DecodeAttrs(value []byte) (Attrs, error) {
	var j attrsJSON
	if err := json.Unmarshal(value, &j); err != nil {
		return Attrs{}, fmt.Errorf("decode lease value: %w", err)
	}
	a := Attrs{BackendType: j.BackendType, BackendData: j.BackendData, BackendV6Data: j.BackendV6Data}
	for _, f := range []struct {
		key string
		family
		text *string
		to   *netip.Addr
	}{
		{"PublicIP", familyIPv4, j.PublicIP, &a.PublicIP},
		{"PublicIPv6", familyIPv6, j.PublicIPv6, &a.PublicIPv6},
	} {
		if f.text == nil || *f.text == noIPv4 {
			continue
		}
		ip, err := netip.ParseAddr(*f.text)
		if err != nil || ip.BitLen() != f.bits || ip.Zone() != "" {
			return Attrs{}, fmt.Errorf("decode lease value: %s %q: want an %s address", f.key, jsonerr.Cut(*f.text, longestKey), f.name)
		}
		if err := CheckPublic(ip); err != nil {
			return Attrs{}, fmt.Errorf("decode lease value: %s: %w", f.key, err)
		}
		*f.to = ip
	}
	return a, nil
}
