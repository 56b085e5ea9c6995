package lease

import (
	"net/netip"
	"strings"
	"testing"
)

func prefix(s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	return netip.MustParsePrefix(s)
}

// The keys are those of flannel v0.28.4's MakeSubnetKey.
func TestKeyIsFlannels(t *testing.T) {
	for _, tt := range []struct{ subnet, ipv6, key string }{
		{"10.5.52.0/24", "", "10.5.52.0-24"},
		{"10.5.1.0/24", "fc00:5:1::/64", "10.5.1.0-24&fc00:5:1::-64"},
		{"", "fc00:5:1::/64", "0.0.0.0-0&fc00:5:1::-64"},
	} {
		l := Lease{Subnet: prefix(tt.subnet), IPv6Subnet: prefix(tt.ipv6)}
		if got := l.Key(); got != Key(tt.key) {
			t.Errorf("key of %v: got %q, want %q", l.Subnets(), got, tt.key)
		}
		v4, v6, err := ParseKey(Key(tt.key))
		if err != nil || v4 != l.Subnet || v6 != l.IPv6Subnet {
			t.Errorf("parse %q: got %v, %v, %v", tt.key, v4, v6, err)
		}
	}
}

func TestParseKeyTakesIPv6InAnySpelling(t *testing.T) {
	v4, v6, err := ParseKey("10.5.1.0-24&FC00:5:0001:0::-64")
	if err != nil {
		t.Fatal(err)
	}
	if k := (Lease{Subnet: v4, IPv6Subnet: v6}).Key(); k != "10.5.1.0-24&fc00:5:1::-64" {
		t.Errorf("got %q", k)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for key, reason := range map[Key]string{
		"":                              `"" is not <IPv4 address>-<length>`,
		"10.5.1.0":                      `"10.5.1.0" is not`,
		"10.5.1.0/24":                   `is not <IPv4 address>-<length>`,
		"10.5.1.0-33":                   `is not <IPv4 address>-<length>`,
		"10.5.1.0-024":                  `is not <IPv4 address>-<length>`,
		"10.5.1.7-24":                   `"10.5.1.7-24" has host bits set; the subnet is "10.5.1.0-24"`,
		"fc00::-64":                     `is not <IPv4 address>-<length>`,
		"0.0.0.0-0":                     `"0.0.0.0-0" is not <IPv4 address>-<length>`,
		"10.5.1.0-24&":                  `"" is not <IPv6 address>-<length>`,
		"10.5.1.0-24&10.5.2.0-24":       `"10.5.2.0-24" is not <IPv6 address>-<length>`,
		"10.5.1.0-24&fc00::1-64":        `has host bits set; the subnet is "fc00::-64"`,
		"10.5.1.0-24&fc00::-64&fc01::-": `is not <IPv6 address>-<length>`,
	} {
		_, _, err := ParseKey(key)
		if err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: got %v, want %s", key, err, reason)
		}
	}
}
