package vxlan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/twillnet/twill/lease"
)

func parse(t *testing.T, text string) *lease.Config {
	t.Helper()
	c, err := lease.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOptionsHaveTheDefaultsOfStockFlannel(t *testing.T) {
	for _, tt := range []struct {
		backend string
		want    Options
	}{
		{`{"Type": "vxlan"}`, Options{VNI: 1}},
		{`{"type": "VXLAN", "vni": 77, "port": 4789, "mtu": 1400, "gbp": true, "learning": true, "directRouting": true}`,
			Options{VNI: 77, Port: 4789, MTU: 1400, GBP: true, Learning: true, DirectRouting: true}},
		{`{"Type": "auto", "VNI": 16777215, "Port": 65535, "MTU": 118, "Else": {}}`, Options{VNI: 16777215, Port: 65535, MTU: 118}},
	} {
		got, err := OptionsOf(parse(t, `{"Network": "10.5.0.0/16", "Backend": `+tt.backend+`}`))
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", tt.backend, got, err, tt.want)
		}
	}
}

func TestOptionThatNoNodeCanUseIsRefusedByItsName(t *testing.T) {
	const dual = `"EnableIPv6": true, "IPv6Network": "fd00::/48", `
	for _, tt := range []struct{ networks, option, key, err string }{
		{"", `"VNI": 0`, "Backend.VNI", "Backend.VNI 0: want a whole number from 1 to 16777215"},
		{"", `"VNI": 16777216`, "Backend.VNI", "from 1 to 16777215"},
		{"", `"VNI": "1"`, "Backend.VNI", `Backend.VNI "1": want a whole number`},
		{"", `"Port": -1`, "Backend.Port", "want a port from 1 to 65535, or 0 for 8472"},
		{"", `"Port": 65536`, "Backend.Port", "want a port"},
		{"", `"MTU": 117`, "Backend.MTU", "118 to 65535 bytes"},
		{dual, `"MTU": 1349`, "Backend.MTU", "1350 to 65535 bytes"}, // 1280 and the 70 of an IPv6 underlay
		{"", `"MTU": 65536`, "Backend.MTU", "118 to 65535 bytes"},
		{"", `"GBP": 1`, "Backend.GBP", "want true or false"},
		{"", `"Learning": "yes"`, "Backend.Learning", "want true or false"},
		{"", `"DirectRouting": 0`, "Backend.DirectRouting", "want true or false"},
	} {
		_, err := OptionsOf(parse(t, `{"Network": "10.5.0.0/16", `+tt.networks+`"Backend": {"Type": "vxlan", `+tt.option+`}}`))
		var ce *lease.ConfigError
		if !errors.As(err, &ce) || ce.Key != tt.key || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v\nlacks %q", tt.option, err, tt.err)
		}
	}
}

func TestMTUIsThatOfTheUnderlayWithoutTheHeaders(t *testing.T) {
	for _, tt := range []struct {
		option, underlay int
		local            netip.Addr
		want             int
	}{
		{0, 1500, local4, 1450},
		{0, 1500, local6, 1430},
		{0, 9000, local4, 8950},
		{1400, 1500, local4, 1350},
		{1400, 1500, local6, 1330},
		{9000, 1500, local4, 1450}, // more than the interface has
		{0, 65536, local4, 65485},  // lo
	} {
		if got := (Options{MTU: tt.option}).mtu(tt.underlay, tt.local); int(got) != tt.want {
			t.Errorf("option %d, underlay %d from %s: %d, want %d", tt.option, tt.underlay, tt.local, got, tt.want)
		}
	}
}
