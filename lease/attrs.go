package lease

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// attrsJSON has the JSON form of flannel's LeaseAttrs, including the order of
// fields and which ones are omitted.
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
// be reached, such as those of the loopback. Unknown keys are ignored; keys that
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
			return Attrs{}, fmt.Errorf("decode lease value: %s %q; want an %s address", f.key, jsonerr.Cut(*f.text, longestKey), f.name)
		}
		if err := CheckPublic(ip); err != nil {
			return Attrs{}, fmt.Errorf("decode lease value: %s: %w", f.key, err)
		}
		*f.to = ip
	}
	return a, nil
}

// Equal reports whether two nodes announce the same attributes.
func (a Attrs) Equal(b Attrs) bool {
	return a.PublicIP == b.PublicIP && a.PublicIPv6 == b.PublicIPv6 && a.BackendType == b.BackendType &&
		string(a.BackendData) == string(b.BackendData) && string(a.BackendV6Data) == string(b.BackendV6Data)
}

// Equal reports whether two leases give the same subnets to the same node. Expiration
// is ignored.
func (l Lease) Equal(o Lease) bool {
	return l.Subnet == o.Subnet && l.IPv6Subnet == o.IPv6Subnet && l.Attrs.Equal(o.Attrs)
}

// Subnets returns the subnets that l has, IPv4 first.
func (l Lease) Subnets() []netip.Prefix {
	var s []netip.Prefix
	for _, p := range []netip.Prefix{l.Subnet, l.IPv6Subnet} {
		if p.IsValid() {
			s = append(s, p)
		}
	}
	return s
}
