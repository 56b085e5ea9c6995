package embedetcd

import (
	"net/netip"
	"testing"
)

func TestListenIsAnAddressWithOrWithoutPort(t *testing.T) {
	for s, want := range map[string]string{
		"192.0.2.1":          "192.0.2.1:2379",
		"192.0.2.1:4001":     "192.0.2.1:4001",
		"2001:db8::1":        "[2001:db8::1]:2379",
		"[2001:db8::1]:1":    "[2001:db8::1]:1",
		"":                   "",
		"host":               "",
		"192.0.2.1:":         "",
		"192.0.2.1:0":        "",
		"http://192.0.2.1:1": "",
	} {
		got, err := ParseListen(s)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken for %s", s, got)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q: %s, %v, want %s", s, got, err, want)
		}
	}
}

func TestTheDaemonAsksOnTheLoopback(t *testing.T) {
	for listen, want := range map[string]string{
		"192.0.2.1:4001":    "http://127.0.0.1:4001",
		"0.0.0.0:2379":      "http://127.0.0.1:2379",
		"[::1]:2380":        "http://[::1]:2380",
		"[2001:db8::1]:999": "http://127.0.0.1:999",
	} {
		if got := Endpoint(netip.MustParseAddrPort(listen)); got != want {
			t.Errorf("listening on %s: %s, want %s", listen, got, want)
		}
	}
	if got := Endpoint(netip.AddrPort{}); got != "http://127.0.0.1:2379" {
		t.Errorf("listening nowhere: %s", got)
	}
}
