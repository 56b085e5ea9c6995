package static

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/twillnet/twill/internal/spelling"
	"github.com/twillnet/twill/lease"
)

// entry is one element of Leases.
type entry struct {
	lease  lease.Lease
	fields map[string]member // by the key as we spell it
}

var entryKeys = []string{
	"Subnet", "IPv6Subnet", "PublicIP", "PublicIPv6",
	"BackendType", "BackendData", "BackendV6Data",
}

// parseEntry reads Leases[i]. It refuses unknown keys: only twill reads the file,
// and a misspelled key would be a setting without effect.
func (p *parser) parseEntry(i int, e member) {
	n := entry{fields: make(map[string]member)}
	defer func() { p.entries = append(p.entries, n) }() // invalid ones too, to keep the indices
	if e.value[0] != '{' {
		p.fault(e.offset, `Leases[%d] %s: want an object such as {"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}`, i, e.value)
		return
	}
	before := len(p.faults)
	for _, m := range members(e.value, e.offset) {
		key, distance := spelling.Nearest(m.key, entryKeys)
		switch _, twice := n.fields[key]; {
		case distance > 3:
			p.fault(m.offset, "Leases[%d]: unknown key %q; want one of %s", i, m.key, strings.Join(entryKeys, ", "))
		case distance > 0:
			p.fault(m.offset, "Leases[%d]: unknown key %q; did you mean %q?", i, m.key, key)
		case twice:
			p.fault(m.offset, "Leases[%d].%s is set twice", i, key)
		case string(m.value) != "null":
			n.fields[key] = m
		}
	}
	l := &n.lease
	p.prefix(i, n, "Subnet", &l.Subnet)
	p.prefix(i, n, "IPv6Subnet", &l.IPv6Subnet)
	p.addr(i, n, "PublicIP", &l.PublicIP)
	p.addr(i, n, "PublicIPv6", &l.PublicIPv6)
	if m, ok := n.fields["BackendType"]; ok {
		if json.Unmarshal(m.value, &l.BackendType) != nil {
			p.fault(m.offset, `Leases[%d].BackendType %s: want a string such as "udp"`, i, m.value)
		}
		l.BackendType = strings.ToLower(l.BackendType)
	}
	l.BackendData = n.fields["BackendData"].value
	l.BackendV6Data = n.fields["BackendV6Data"].value
	if len(p.faults) > before {
		return // what seems missing may be misspelled
	}
	if !l.Subnet.IsValid() && !l.IPv6Subnet.IsValid() {
		p.fault(e.offset, "Leases[%d]: neither Subnet nor IPv6Subnet is set", i)
	}
	if !l.PublicIP.IsValid() && !l.PublicIPv6.IsValid() {
		p.fault(e.offset, "Leases[%d]: neither PublicIP nor PublicIPv6 is set", i)
	}
}

// prefix stores a subnet of Leases[i] in to, if there is one.
func (p *parser) prefix(i int, n entry, key string, to *netip.Prefix) {
	m, ok := n.fields[key]
	if !ok {
		return
	}
	want, bits := `an IPv4 subnet such as "10.5.1.0/24"`, 32
	if key == "IPv6Subnet" {
		want, bits = `an IPv6 subnet such as "fd00:5:0:1::/64"`, 128
	}
	var s string
	_ = json.Unmarshal(m.value, &s) // not a string: s stays empty and does not parse
	switch subnet, err := netip.ParsePrefix(s); {
	case err != nil || subnet.Addr().BitLen() != bits:
		p.fault(m.offset, "Leases[%d].%s %s: want %s", i, key, m.value, want)
	case subnet != subnet.Masked():
		p.fault(m.offset, "Leases[%d].%s %s has host bits set; the subnet is %q", i, key, m.value, subnet.Masked())
	default:
		*to = subnet
	}
}

// addr stores a public address of Leases[i] in to, if there is one.
func (p *parser) addr(i int, n entry, key string, to *netip.Addr) {
	m, ok := n.fields[key]
	if !ok {
		return
	}
	want, bits := `an IPv4 address such as "192.0.2.1"`, 32
	if key == "PublicIPv6" {
		want, bits = `an IPv6 address such as "2001:db8::1"`, 128
	}
	var s string
	_ = json.Unmarshal(m.value, &s)
	switch a, err := netip.ParseAddr(s); {
	case err != nil || a.BitLen() != bits || a.Is4In6() || a.Zone() != "":
		p.fault(m.offset, "Leases[%d].%s %s: want %s", i, key, m.value, want)
	default:
		if err := lease.CheckPublic(a); err != nil {
			p.fault(m.offset, "Leases[%d].%s: %v", i, key, err)
			return
		}
		*to = a
	}
}
