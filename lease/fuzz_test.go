package lease

import "testing"

// FuzzDecodeAttrs: what was decoded is a node's that can be reached, and survives being
// written again.
func FuzzDecodeAttrs(f *testing.F) {
	f.Add([]byte(`{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		a, err := DecodeAttrs(text)
		if err != nil {
			if n := len(err.Error()); n > 500 {
				t.Errorf("the message has %d bytes", n)
			}
			return
		}
		for _, ip := range a.Addrs() {
			if err := CheckPublic(ip); err != nil {
				t.Error(err)
			}
		}
		again, err := EncodeAttrs(a)
		if err != nil {
			t.Fatal(err)
		}
		b, err := DecodeAttrs(again)
		if err != nil || a.PublicIP != b.PublicIP || a.PublicIPv6 != b.PublicIPv6 || a.BackendType != b.BackendType {
			t.Errorf("%s: %+v, %v; want %+v", again, b, err, a)
		}
	})
}

// FuzzParseKey: a key that is read is written the same.
func FuzzParseKey(f *testing.F) {
	f.Add("10.5.1.0-24&fc00:5:1::-64")
	f.Fuzz(func(t *testing.T, text string) {
		subnet, ipv6Subnet, err := ParseKey(Key(text))
		if err != nil {
			return
		}
		k := Lease{Subnet: subnet, IPv6Subnet: ipv6Subnet}.Key()
		if a, b, err := ParseKey(k); err != nil || a != subnet || b != ipv6Subnet {
			t.Errorf("%q is written as %q: %v", text, k, err)
		}
	})
}
