package vxlan

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func mac(t testing.TB, s string) net.HardwareAddr {
	t.Helper()
	a, err := net.ParseMAC(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The bytes are those that stock flannel 0.28.9 has written to etcd.
func encoded(d Data) json.RawMessage {
	b, err := json.Marshal(d)
	if err != nil {
		panic(err)
	}
	return b
}

func TestDataAreWrittenAsStockFlannelDoes(t *testing.T) {
	const golden = `{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0:07"}`
	d := Data{VNI: 1, VtepMAC: HardwareAddr(mac(t, "8e:3b:1c:52:a0:07"))}
	if got := encoded(d); string(got) != golden {
		t.Errorf("%s, want %s", got, golden)
	}
	// As part of more, too.
	more, err := json.Marshal(struct {
		Data
		Backends []string
	}{d, []string{"vxlan"}})
	if want := strings.TrimSuffix(golden, "}") + `,"Backends":["vxlan"]}`; err != nil || string(more) != want {
		t.Errorf("%s, %v, want %s", more, err, want)
	}
}

func TestDataAreRead(t *testing.T) {
	for _, text := range []string{
		`{"VNI":77,"VtepMAC":"8e:3b:1c:52:a0:07"}`,
		`{"VtepMAC":"8E-3B-1C-52-A0-07","VNI":77,"Backends":["vxlan","udp"],"PartialChecksums":true}`,
		` {"vni": 77, "vtepmac": "8e3b.1c52.a007", "Else": null} `,
	} {
		d, err := ParseData(json.RawMessage(text))
		if err != nil || d.VNI != 77 || d.VtepMAC.String() != "8e:3b:1c:52:a0:07" {
			t.Errorf("%s: %+v, %v", text, d, err)
		}
	}
}

func TestDataThatTellNoVTEPAreRefused(t *testing.T) {
	for _, tt := range []struct{ text, err string }{
		{``, "unexpected end"},
		{`null`, "VNI 0"},
		{`[]`, "cannot unmarshal array"},
		{`{"VtepMAC":"8e:3b:1c:52:a0:07"}`, "VNI 0; want 1 to 16777215"},
		{`{"VNI":-1,"VtepMAC":"8e:3b:1c:52:a0:07"}`, "VNI -1"},
		{`{"VNI":4294967296,"VtepMAC":"8e:3b:1c:52:a0:07"}`, "VN"},
		{`{"VNI":1}`, "VtepMAC: no MAC address"},
		{`{"VNI":1,"VtepMAC":null}`, "VtepMAC: no MAC address"},
		{`{"VNI":1,"VtepMAC":""}`, "invalid MAC address"},
		{`{"VNI":1,"VtepMAC":7}`, "VtepMAC"},
		{`{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0"}`, "invalid MAC address"},
		{`{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}`, "not a unicast MAC address"},
		{`{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}`, "not a unicast MAC address"},
		{`{"VNI":1,"VtepMAC":"02:00:5e:10:00:00:00:01"}`, "not a unicast MAC address"}, // an EUI-64
		{`{"VNI":` + strings.Repeat("9", 100_000) + `}`, "cannot unmarshal number 999"},
	} {
		d, err := ParseData(json.RawMessage(tt.text))
		if err == nil || !strings.Contains(err.Error(), tt.err) || d.VNI != 0 {
			t.Errorf("%s: %+v, %v\nlacks %q", tt.text, d, err, tt.err)
		} else if n := len(err.Error()); n > 200 {
			t.Errorf("the message has %d bytes", n) // the daemon logs it, and status has it
		}
	}
}

func FuzzParseData(f *testing.F) {
	f.Add([]byte(`{"VNI":1,"VtepMAC":"8e:3b:1c:52:a0:07"}`))
	f.Add([]byte(`{"VNI":1e3,"VtepMAC":"8e-3b-1c-52-a0-07","x":[{}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseData(text)
		if err != nil {
			return
		}
		again, err := ParseData(encoded(d))
		if err != nil || again.VNI != d.VNI || !bytes.Equal(again.VtepMAC, d.VtepMAC) {
			t.Errorf("%+v is %+v after encoding, %v", d, again, err)
		}
	})
}

// Written down, because a node that comes back with another is not reached
// until the others have learnt of it.
func TestMACIsTheSameForEver(t *testing.T) {
	for _, tt := range []struct {
		public string
		vni    int
		ipv6   bool
		want   string
	}{
		{"192.0.2.1", 1, false, "9a:92:da:1c:8f:0b"},
		{"::ffff:192.0.2.1", 1, false, "9a:92:da:1c:8f:0b"},
		{"192.0.2.1", 1, true, "9e:4f:ce:33:32:6a"},
		{"192.0.2.1", 2, false, "fa:64:f6:bf:30:ba"},
		{"192.0.2.2", 1, false, "de:3e:fc:d2:f5:85"},
		{"2001:db8::1", 1, true, "1e:bf:e0:e6:57:0b"},
	} {
		if got := MAC(netip.MustParseAddr(tt.public), tt.vni, tt.ipv6); got.String() != tt.want {
			t.Errorf("of %s with VNI %d, IPv6 %t: %s, want %s", tt.public, tt.vni, tt.ipv6, got, tt.want)
		}
	}
}

func TestMACIsOneThatADeviceMayHave(t *testing.T) {
	seen := make(map[string]netip.Addr)
	addr := netip.MustParseAddr("10.0.0.0")
	for range 5000 {
		addr = addr.Next()
		m := MAC(addr, 1, false)
		if other, twice := seen[m.String()]; twice {
			t.Fatalf("%s and %s have the same, %s", addr, other, m)
		}
		if _, err := macOf(m); err != nil || m[0]&2 == 0 {
			t.Fatalf("%s of %s: %v; want a unicast, locally administered one", m, addr, err)
		}
		seen[m.String()] = addr
	}
}
