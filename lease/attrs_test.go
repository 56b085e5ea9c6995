package lease

import (
	"encoding/json"
	"net/netip"
	"testing"
)

// The texts are what flannel v0.28.4 writes for the same attributes.
func TestAttrsAreEncodedAsFlannelDoes(t *testing.T) {
	v4, v6 := netip.MustParseAddr("172.31.9.11"), netip.MustParseAddr("2001:db8::9:11")
	for _, tt := range []struct {
		attrs Attrs
		text  string
	}{
		{Attrs{PublicIP: v4}, `{"PublicIP":"172.31.9.11","PublicIPv6":null}`},
		{Attrs{PublicIP: v4, PublicIPv6: v6}, `{"PublicIP":"172.31.9.11","PublicIPv6":"2001:db8::9:11"}`},
		{Attrs{PublicIPv6: v6}, `{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::9:11"}`},
		{Attrs{PublicIP: v4, BackendType: "vxlan",
			BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"c6:5d:a3:05:58:f4"}`), BackendV6Data: json.RawMessage(`{"x":"\u003c\u0026\u003e"}`)},
			`{"PublicIP":"172.31.9.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:5d:a3:05:58:f4"},"BackendV6Data":{"x":"\u003c\u0026\u003e"}}`},
		{Attrs{PublicIP: v4, BackendData: json.RawMessage(`null`)}, `{"PublicIP":"172.31.9.11","PublicIPv6":null,"BackendData":null}`},
	} {
		got, err := EncodeAttrs(tt.attrs)
		if err != nil || string(got) != tt.text {
			t.Errorf("got  %s, %v\nwant %s", got, err, tt.text)
		}
		back, err := DecodeAttrs([]byte(tt.text))
		if err != nil || !back.Equal(tt.attrs) {
			t.Errorf("decode %s: got %+v, %v", tt.text, back, err)
		}
	}
}

func TestBackendDataAreCompactedAndEscaped(t *testing.T) {
	got, err := EncodeAttrs(Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), BackendData: json.RawMessage("{ \"x\":\n\"<\" }")})
	if want := `{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendData":{"x":"\u003c"}}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	if _, err := EncodeAttrs(Attrs{BackendData: json.RawMessage("{")}); err == nil {
		t.Error("backend data that are no JSON were encoded")
	}
}

func TestDecodeAttrsTakesWhatOperatorsWrite(t *testing.T) {
	// A reservation as flannel's documentation shows it.
	a, err := DecodeAttrs([]byte(`{"publicip":"192.0.2.7","Comment":"rack 4"}`))
	if err != nil || a.PublicIP.String() != "192.0.2.7" || a.PublicIPv6.IsValid() {
		t.Errorf("got %+v, %v", a, err)
	}
	for _, text := range []string{``, `[]`, `{"PublicIP":7}`, `{"PublicIP":"x"}`, `{"PublicIP":"::1"}`, `{"PublicIPv6":"192.0.2.1"}`, `{"PublicIPv6":"fe80::1%eth0"}`,
		`{"PublicIP":"127.0.0.1"}`, `{"PublicIP":"0.0.0.1"}`, `{"PublicIP":"224.0.0.1"}`, `{"PublicIP":"255.255.255.255"}`,
		`{"PublicIPv6":"::1"}`, `{"PublicIPv6":"::ffff:192.0.2.1"}`, `{"PublicIPv6":"fe80::1"}`, `{"PublicIPv6":"ff02::1"}`} {
		if a, err := DecodeAttrs([]byte(text)); err == nil {
			t.Errorf("%s: got %+v, want an error", text, a)
		}
	}
}
