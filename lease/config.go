package lease

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"github.com/twillnet/twill/lease/internal/jsonerr"
)

// Config is the configuration that all nodes of a network share: flannel's
// <prefix>/config in etcd, net-conf.json in Kubernetes, the top level of a
// lease file. It is immutable once parsed.
type Config struct {
	IPv4, IPv6     Range
	EnableNFTables bool
	Backend        Backend
}

// Range describes the subnets that a network allocates in one address family.
// It is the zero Range if the family is not enabled, regardless of its other
// keys.
type Range struct {
	Network   netip.Prefix // masked
	SubnetLen int          // prefix length of a node's subnet, bits
	SubnetMin netip.Addr   // first subnet that may be leased
	SubnetMax netip.Addr   // last one, inclusive
}

// Enabled reports whether the network has this address family.
func (r Range) Enabled() bool { return r.Network.IsValid() }

// Networks returns the networks of the enabled families, IPv4 first.
func (c *Config) Networks() []netip.Prefix {
	var n []netip.Prefix
	for _, r := range []Range{c.IPv4, c.IPv6} {
		if r.Enabled() {
			n = append(n, r.Network)
		}
	}
	return n
}

// HandsOut reports whether the network could allocate the subnets of l to a node:
// whether they have its families and subnet lengths and are within its bounds.
func (c *Config) HandsOut(l Lease) bool {
	for _, f := range []struct {
		Range
		subnet netip.Prefix
	}{{c.IPv4, l.Subnet}, {c.IPv6, l.IPv6Subnet}} {
		if f.Enabled() != f.subnet.IsValid() || f.Enabled() && !f.HandsOut(f.subnet) {
			return false
		}
	}
	return true
}

// HandsOut reports whether p is a subnet that the range allocates.
func (r Range) HandsOut(p netip.Prefix) bool {
	return p.Bits() == r.SubnetLen && p == p.Masked() && !p.Addr().Less(r.SubnetMin) && !r.SubnetMax.Less(p.Addr())
}

// Equal reports whether two configurations are equivalent. Backend options are
// compared as written, without white space.
func (c *Config) Equal(o *Config) bool { return reflect.DeepEqual(c, o) }

// ConfigError reports an invalid key of a network configuration.
type ConfigError struct {
	Key   string // as flannel spells it: "SubnetLen", "Backend.Port"
	Value string // JSON as given; empty if the key is missing
	Want  string // what would be valid
}

func (e *ConfigError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("%s is missing; want %s", e.Key, e.Want)
	}
	return fmt.Sprintf("%s %s: want %s", e.Key, jsonerr.Brief([]byte(e.Value)), e.Want)
}

// configJSON is the text of a Config. encoding/json reads it as in flannel:
// the case of a key does not matter, unknown keys are ignored, and the last of
// several duplicate keys counts.
type configJSON struct {
	EnableIPv4, EnableIPv6, EnableNFTables json.RawMessage

	Network, SubnetLen, SubnetMin, SubnetMax                 json.RawMessage
	IPv6Network, IPv6SubnetLen, IPv6SubnetMin, IPv6SubnetMax json.RawMessage

	Backend json.RawMessage
}

// ConfigKeys returns the keys that ParseConfig knows, as flannel spells them.
func ConfigKeys() []string {
	var keys []string
	for f := range reflect.TypeFor[configJSON]().Fields() {
		keys = append(keys, f.Name)
	}
	return keys
}

// ParseConfig reads a network configuration with flannel's keys, defaults and
// bounds. Its error wraps a *SyntaxError if text is not JSON and a *ConfigError if
// a value cannot be used. null counts as absent.
func ParseConfig(text []byte) (*Config, error) { return parseAs(text, rangeJSON.parse) }

// ParseAssigned is ParseConfig for a network whose subnets are not leased but
// assigned, as in Kubernetes: SubnetLen, SubnetMin and SubnetMax are not read,
// and are zero in the result, and the network may be that of a single node.
func ParseAssigned(text []byte) (*Config, error) { return parseAs(text, rangeJSON.parseAssigned) }

func parseAs(text []byte, parseRange func(rangeJSON) (Range, error)) (*Config, error) {
	c, err := parseConfig(text, parseRange)
	if err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	return c, nil
}

func parseConfig(text []byte, parseRange func(rangeJSON) (Range, error)) (*Config, error) {
	var j configJSON
	if err := unmarshal(text, &j); err != nil {
		return nil, err
	}
	var (
		c          Config
		ipv4, ipv6 = true, false
		err        error
	)
	for _, b := range []struct {
		key  string
		json json.RawMessage
		to   *bool
	}{
		{"EnableIPv4", j.EnableIPv4, &ipv4},
		{"EnableIPv6", j.EnableIPv6, &ipv6},
		{"EnableNFTables", j.EnableNFTables, &c.EnableNFTables},
	} {
		if err := field(b.key, b.json, b.to, "true or false"); err != nil {
			return nil, err
		}
	}
	if !ipv4 && !ipv6 {
		return nil, &ConfigError{"EnableIPv4", "false", `true, or "EnableIPv6": true`}
	}
	if ipv4 {
		c.IPv4, err = parseRange(rangeJSON{familyIPv4, j.Network, j.SubnetLen, j.SubnetMin, j.SubnetMax})
		if err != nil {
			return nil, err
		}
	}
	if ipv6 {
		c.IPv6, err = parseRange(rangeJSON{familyIPv6, j.IPv6Network, j.IPv6SubnetLen, j.IPv6SubnetMin, j.IPv6SubnetMax})
		if err != nil {
			return nil, err
		}
	}
	if c.Backend, err = parseBackend(j.Backend); err != nil {
		return nil, err
	}
	return &c, nil
}

// Backend is the "Backend" object of a network configuration: which backend
// carries the packets, and its options, which only the backend understands.
type Backend struct {
	Type string          // lower-case; "udp" if the configuration names none
	Raw  json.RawMessage // the whole object, compact; nil if there is none
}

// defaultBackend is the default of flannel's code. Its documentation says
// vxlan.
const defaultBackend = "udp"

func parseBackend(text json.RawMessage) (Backend, error) {
	if absent(text) {
		return Backend{Type: defaultBackend}, nil
	}
	const want = `an object such as {"Type": "udp"}`
	var o struct{ Type string }
	if err := field("Backend", text, &o, want); err != nil {
		return Backend{}, err
	}
	if o.Type == "" {
		return Backend{}, &ConfigError{"Backend", string(text), want + `, or no Backend at all for "udp"`}
	}
	var raw bytes.Buffer
	if err := json.Compact(&raw, text); err != nil {
		return Backend{}, err
	}
	return Backend{Type: strings.ToLower(o.Type), Raw: raw.Bytes()}, nil
}

// Decode stores the options in the struct that options points to, by flannel's
// rules: the case of a key does not matter, keys without a field are ignored, and
// fields without a key keep their value, which is how a backend sets defaults.
// Its error wraps a *ConfigError that names the option if a value does not fit.
func (b Backend) Decode(options any) error {
	if b.Raw == nil {
		return nil
	}
	err := json.Unmarshal(b.Raw, options)
	var te *json.UnmarshalTypeError
	switch {
	case errors.As(err, &te):
		return fmt.Errorf("network config: %w", &ConfigError{"Backend." + te.Field, b.value(te.Field), wantOf(te.Type)})
	case err != nil:
		return fmt.Errorf("network config: Backend: %w", err)
	}
	return nil
}

// value returns the original text of an option.
func (b Backend) value(key string) string {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b.Raw, &all); err != nil {
		return "?"
	}
	for k, v := range all {
		if strings.EqualFold(k, key) {
			return string(v)
		}
	}
	return "?" // inside a nested object
}

// wantOf describes the JSON that fits a Go type.
func wantOf(t reflect.Type) string {
	switch k := t.Kind(); {
	case k == reflect.Bool:
		return "true or false"
	case k == reflect.String:
		return "a string"
	case k >= reflect.Uint8 && k <= reflect.Uint32:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case k == reflect.Uint || k == reflect.Uint64:
		return "a whole number, 0 or more"
	case k >= reflect.Int && k <= reflect.Int64:
		return "a whole number"
	case k == reflect.Struct || k == reflect.Map:
		return "an object"
	}
	return "JSON that fits " + t.String()
}
