package lease

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseConfigHasFlannelsDefaults(t *testing.T) {
	type want struct {
		network          string
		len              int
		subnetMin, limit string
	}
	// What flannel v0.28.4 makes of the same text.
	for _, tt := range []struct {
		text string
		ipv6 bool
		want want
	}{
		{text: `{"Network":"10.5.0.0/16"}`, want: want{"10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"}},
		{text: `{"network":"10.5.1.7/16","SUBNETLEN":26,"Network":"10.6.0.0/16"}`, want: want{"10.6.0.0/16", 26, "10.6.0.64", "10.6.255.192"}},
		{text: `{"Network":"10.5.1.7/16"}`, want: want{"10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"}},
		{text: `{"Network":"10.5.0.0/22"}`, want: want{"10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0"}},
		{text: `{"Network":"10.5.0.0/23"}`, want: want{"10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128"}},
		{text: `{"Network":"240.0.0.0/4"}`, want: want{"240.0.0.0/4", 24, "240.0.1.0", "255.255.255.0"}},
		{text: `{"Network":"10.5.0.0/28"}`, want: want{"10.5.0.0/28", 30, "10.5.0.4", "10.5.0.12"}},
		{text: `{"Network":"10.5.0.0/16","SubnetLen":30}`, want: want{"10.5.0.0/16", 30, "10.5.0.4", "10.5.255.252"}},
		{text: `{"Network":"10.5.0.0/16","SubnetLen":18}`, want: want{"10.5.0.0/16", 18, "10.5.64.0", "10.5.192.0"}},
		{text: `{"Network":"10.5.0.0/16","SubnetMin":"10.5.10.0","SubnetMax":"10.5.20.0"}`, want: want{"10.5.0.0/16", 24, "10.5.10.0", "10.5.20.0"}},
		{text: `{"Network":"10.5.0.0/16","SubnetMin":"0.0.0.0","SubnetLen":0,"Unknown":[1]}`, want: want{"10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"}},
		{text: `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48"}`, ipv6: true, want: want{"fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"}},
		{text: `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/62"}`, ipv6: true, want: want{"fc00::/62", 64, "fc00:0:0:1::", "fc00:0:0:3::"}},
		{text: `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/63"}`, ipv6: true, want: want{"fc00::/63", 65, "fc00::8000:0:0:0", "fc00:0:0:1:8000::"}},
		{text: `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/124"}`, ipv6: true, want: want{"fc00::/124", 126, "fc00::4", "fc00::c"}},
	} {
		c, err := ParseConfig([]byte(tt.text))
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		got, other := c.IPv4, c.IPv6
		if tt.ipv6 {
			got, other = other, got
		}
		expect := Range{netip.MustParsePrefix(tt.want.network), tt.want.len, netip.MustParseAddr(tt.want.subnetMin), netip.MustParseAddr(tt.want.limit)}
		if got != expect || other != (Range{}) {
			t.Errorf("%s: got %+v and %+v, want %+v", tt.text, got, other, expect)
		}
		if c.Backend.Type != "udp" {
			t.Errorf("%s: backend %q, want udp where none is named", tt.text, c.Backend.Type)
		}
	}
}

func TestParseConfigNamesTheKeyThatIsWrong(t *testing.T) {
	for _, tt := range []struct{ text, key, message string }{
		{`{}`, "Network", `network config: Network is missing; want an IPv4 network such as "10.5.0.0/16", or "EnableIPv4": false`},
		{`{"Network":null}`, "Network", `network config: Network is missing; want an IPv4 network such as "10.5.0.0/16", or "EnableIPv4": false`},
		{`{"Network":"10.5.0.0"}`, "Network", `network config: Network "10.5.0.0": want an IPv4 network such as "10.5.0.0/16"`},
		{`{"Network":"fd00::/48"}`, "Network", `network config: Network "fd00::/48": want an IPv4 network such as "10.5.0.0/16"`},
		{`{"Network":16}`, "Network", `network config: Network 16: want an IPv4 network such as "10.5.0.0/16"`},
		{`{"Network":"0.0.0.0/0"}`, "Network", `network config: Network "0.0.0.0/0": want an IPv4 network such as "10.5.0.0/16"`},
		{`{"Network":"127.0.0.0/8"}`, "Network", `network config: Network "127.0.0.0/8": want an IPv4 network such as "10.5.0.0/16"; it overlaps 127.0.0.0/8 (loopback), which is not routed between hosts`},
		{`{"Network":"126.0.0.0/7"}`, "Network", `network config: Network "126.0.0.0/7": want an IPv4 network such as "10.5.0.0/16"; it overlaps 127.0.0.0/8 (loopback), which is not routed between hosts`},
		{`{"Network":"224.5.0.0/16"}`, "Network", `network config: Network "224.5.0.0/16": want an IPv4 network such as "10.5.0.0/16"; it overlaps 224.0.0.0/4 (multicast), which is not routed between hosts`},
		{`{"Network":"169.254.0.0/16"}`, "Network", `network config: Network "169.254.0.0/16": want an IPv4 network such as "10.5.0.0/16"; it overlaps 169.254.0.0/16 (link-local), which is not routed between hosts`},
		{`{"Network":"0.5.0.0/16"}`, "Network", `network config: Network "0.5.0.0/16": want an IPv4 network such as "10.5.0.0/16"; it overlaps 0.0.0.0/8 (this network), which is not routed between hosts`},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fe80::/48"}`, "IPv6Network", `network config: IPv6Network "fe80::/48": want an IPv6 network such as "fd00:5::/48"; it overlaps fe80::/10 (link-local), which is not routed between hosts`},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ff05::/48"}`, "IPv6Network", `network config: IPv6Network "ff05::/48": want an IPv6 network such as "fd00:5::/48"; it overlaps ff00::/8 (multicast), which is not routed between hosts`},
		{`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"::/64"}`, "IPv6Network", `network config: IPv6Network "::/64": want an IPv6 network such as "fd00:5::/48"; it overlaps ::1/128 (loopback), which is not routed between hosts`},
		{`{"Network":"10.5.0.0/29"}`, "Network", `network config: Network "10.5.0.0/29": want /28 or wider, so that four subnets fit`},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true}`, "IPv6Network", `network config: IPv6Network is missing; want an IPv6 network such as "fd00:5::/48", or "EnableIPv6": false`},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/125"}`, "IPv6Network", `network config: IPv6Network "fc00::/125": want /124 or wider, so that four subnets fit`},
		{`{"Network":"10.5.0.0/16","EnableIPv6":"yes"}`, "EnableIPv6", `network config: EnableIPv6 "yes": want true or false`},
		{`{"Network":"10.5.0.0/16","EnableIPv4":false}`, "EnableIPv4", `network config: EnableIPv4 false: want true, or "EnableIPv6": true`},
		{`{"Network":"10.5.0.0/16","SubnetLen":17}`, "SubnetLen", `network config: SubnetLen 17: want a whole number from 18 to 30 for Network 10.5.0.0/16`},
		{`{"Network":"10.5.0.0/16","subnetlen":31}`, "SubnetLen", `network config: SubnetLen 31: want a whole number from 18 to 30 for Network 10.5.0.0/16`},
		{`{"Network":"10.5.0.0/16","SubnetLen":"24"}`, "SubnetLen", `network config: SubnetLen "24": want a whole number from 18 to 30 for Network 10.5.0.0/16`},
		{`{"Network":"10.5.0.0/16","SubnetLen":-1}`, "SubnetLen", `network config: SubnetLen -1: want a whole number from 18 to 30 for Network 10.5.0.0/16`},
		{`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}`, "IPv6SubnetLen", `network config: IPv6SubnetLen 127: want a whole number from 50 to 126 for IPv6Network fc00::/48`},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`, "SubnetMin", `network config: SubnetMin "10.6.0.0": want the first address of a /24 in 10.5.0.0/16, such as "10.5.1.0"`},
		{`{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.1"}`, "SubnetMax", `network config: SubnetMax "10.5.9.1": want the first address of a /24 in 10.5.0.0/16, such as "10.5.255.0"`},
		{`{"Network":"10.5.0.0/16","SubnetMin":"10.5.20.0","SubnetMax":"10.5.10.0"}`, "SubnetMax", `network config: SubnetMax "10.5.10.0": want SubnetMin 10.5.20.0 or above`},
		{`{"Network":"10.5.0.0/16","Backend":{}}`, "Backend", `network config: Backend {}: want an object such as {"Type": "udp"}, or no Backend at all for "udp"`},
		{`{"Network":"10.5.0.0/16","Backend":{"Type":` + strings.Repeat(" ", 99) + `"","Comment":"` + strings.Repeat("x", 99) + `"}}`, "Backend", `network config: Backend {"Type":"","Comment":"` + strings.Repeat("x", 38) + `…: want an object such as {"Type": "udp"}, or no Backend at all for "udp"`},
		{`{"Network":"10.5.0.0/16","Backend":"udp"}`, "Backend", `network config: Backend "udp": want an object such as {"Type": "udp"}`},
	} {
		_, err := ParseConfig([]byte(tt.text))
		var ce *ConfigError
		if !errors.As(err, &ce) {
			t.Errorf("%s: got error %v, want a *ConfigError", tt.text, err)
			continue
		}
		if ce.Key != tt.key || err.Error() != tt.message {
			t.Errorf("%s:\n got key %q, %s\nwant key %q, %s", tt.text, ce.Key, err, tt.key, tt.message)
		}
	}
}

func TestParseConfigSaysWhereTheJSONEnds(t *testing.T) {
	for _, tt := range []struct{ text, message string }{
		{"{\n  \"Network\": \"10.5.0.0/16\"\n  \"SubnetLen\": 24\n}", `network config: line 3, column 3: invalid character '"' after object key:value pair`},
		{"{\"Network\": \"10.5.0.0/16\"", `network config: line 1, column 26: unexpected end of JSON input`},
		{"", `network config: line 1, column 1: unexpected end of JSON input`},
		{"{}\n}", `network config: line 2, column 1: invalid character '}' after top-level value`},
		{"[1]", `network config: the text is a JSON array; want an object`},
	} {
		if _, err := ParseConfig([]byte(tt.text)); err == nil || err.Error() != tt.message {
			t.Errorf("%q:\n got %v\nwant %s", tt.text, err, tt.message)
		}
	}
}

func TestBackendDecodesItsOptions(t *testing.T) {
	type options struct {
		Port uint16
		GBP  bool
	}
	parse := func(backend string) Backend {
		t.Helper()
		c, err := ParseConfig([]byte(`{"Network":"10.5.0.0/16","Backend":` + backend + `}`))
		if err != nil {
			t.Fatal(err)
		}
		return c.Backend
	}

	b := parse(`{ "type": "UDP", "port": 8286, "unknown": {} }`)
	if b.Type != "udp" || string(b.Raw) != `{"type":"UDP","port":8286,"unknown":{}}` {
		t.Errorf("got type %q, raw %s", b.Type, b.Raw)
	}
	o := options{Port: 8285}
	if err := b.Decode(&o); err != nil || o.Port != 8286 {
		t.Errorf("got %+v, %v; want port 8286", o, err)
	}
	o = options{Port: 8285}
	if err := parse(`null`).Decode(&o); err != nil || o.Port != 8285 {
		t.Errorf("got %+v, %v; want the default to stay", o, err)
	}
	for backend, message := range map[string]string{
		`{"Type":"udp","PORT":70000}`: "network config: Backend.Port 70000: want a whole number from 0 to 65535",
		`{"Type":"udp","Port":"x"}`:   `network config: Backend.Port "x": want a whole number from 0 to 65535`,
		`{"Type":"udp","GBP":1}`:      "network config: Backend.GBP 1: want true or false",
	} {
		var ce *ConfigError
		err := parse(backend).Decode(new(options))
		if !errors.As(err, &ce) || err.Error() != message {
			t.Errorf("%s: got %v, want %s", backend, err, message)
		}
	}
}

func TestConfigsAreEqualWhateverTheirWhiteSpace(t *testing.T) {
	parse := func(text string) *Config {
		t.Helper()
		c, err := ParseConfig([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := parse(`{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":1}}`)
	if b := parse("{\n\"SubnetLen\": 24, \"Network\": \"10.5.0.0/16\", \"Backend\": { \"Type\": \"udp\", \"Port\": 1 } }"); !a.Equal(b) {
		t.Error("the same configuration in another form is not equal")
	}
	for _, text := range []string{
		`{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":2}}`,
		`{"Network":"10.5.0.0/16","SubnetLen":25,"Backend":{"Type":"udp","Port":1}}`,
		`{"Network":"10.5.0.0/16","EnableNFTables":true,"Backend":{"Type":"udp","Port":1}}`,
	} {
		if a.Equal(parse(text)) {
			t.Errorf("equal to %s", text)
		}
	}
}

func TestNetworksAreThoseOfTheEnabledFamilies(t *testing.T) {
	c, err := ParseConfig([]byte(`{"Network":"10.5.0.0/16","IPv6Network":"fd00::/48","EnableIPv6":true}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := c.Networks(); len(n) != 2 || n[0].String() != "10.5.0.0/16" || n[1].String() != "fd00::/48" {
		t.Errorf("got %v", n)
	}
	c, err = ParseConfig([]byte(`{"Network":"10.5.0.0/16","IPv6Network":"fd00::/48"}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := c.Networks(); len(n) != 1 || c.IPv6.Enabled() {
		t.Errorf("got %v; want IPv6 to be off by default, as in flannel", n)
	}
}
