package layout

import (
	"encoding/json"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/lease"
)

const prefix = DefaultPrefix + "/"

func mustKeys(t *testing.T) *Keys {
	t.Helper()
	k, err := NewKeys("")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestPrefixFollowsFlannelsRule(t *testing.T) {
	for in, want := range map[string]string{
		"":                           "flannel.alpha.coreos.com/public-ip",
		"flannel.alpha.coreos.com":   "flannel.alpha.coreos.com/public-ip",
		"flannel.alpha.coreos.com/":  "flannel.alpha.coreos.com/public-ip",
		"example.com/second":         "example.com/second-public-ip",
		"example.com/second-":        "example.com/second-public-ip",
		"Example.com":                "",
		"example":                    "",
		"example.com/a/b":            "",
		"https://example.com/second": "",
		"a.b/C":                      "",
	} {
		k, err := NewKeys(in)
		got := ""
		if err == nil {
			got = k.public
		}
		if (err != nil) != (want == "") || got != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestPodCIDRsAreDistinguishedByFamily(t *testing.T) {
	for _, tt := range []struct {
		cidrs []string
		want  [2]string
		err   string
	}{
		{[]string{"10.244.1.0/24"}, [2]string{"10.244.1.0/24"}, ""},
		{[]string{"fd00:5:1::/64"}, [2]string{"", "fd00:5:1::/64"}, ""},
		{[]string{"10.244.1.0/24", "fd00:5:1::/64"}, [2]string{"10.244.1.0/24", "fd00:5:1::/64"}, ""},
		{[]string{"fd00:5:1::/64", "10.244.1.0/24"}, [2]string{"10.244.1.0/24", "fd00:5:1::/64"}, ""},
		{[]string{"10.244.1.7/24"}, [2]string{"10.244.1.0/24"}, ""},
		{nil, [2]string{}, ""},
		{[]string{"10.244.1.0"}, [2]string{}, `"10.244.1.0" is not a subnet`},
		{[]string{"10.244.1.0/24", "10.244.2.0/24"}, [2]string{}, "two subnets of one address family"},
		{[]string{"10.244.1.0/24", "fd00:5:1::/64", "10.244.2.0/24"}, [2]string{}, "3 entries"},
	} {
		v4, v6, err := (&Node{PodCIDRs: tt.cidrs}).Subnets()
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%v: got error %v, want %q", tt.cidrs, err, tt.err)
			}
			continue
		}
		got := [2]string{text(v4), text(v6)}
		if err != nil || got != tt.want {
			t.Errorf("%v: got %v, %v; want %v", tt.cidrs, got, err, tt.want)
		}
	}
}

func text(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

var (
	ipv4  = netip.MustParseAddr("192.0.2.11")
	ipv6  = netip.MustParseAddr("2001:db8::11")
	now   = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	vtep  = `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`
	vtep6 = `{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e6"}`
)

// TestAnnotationsAreStocks has what stock flannel v0.28.9 writes for the same
// attributes.
func TestAnnotationsAreStocks(t *testing.T) {
	k := mustKeys(t)
	for _, tt := range []struct {
		name  string
		user  map[string]string
		attrs lease.Attrs
		want  map[string]string
	}{
		{"vxlan", nil,
			lease.Attrs{PublicIP: ipv4, BackendType: "vxlan", BackendData: json.RawMessage(vtep)},
			map[string]string{"backend-type": "vxlan", "backend-data": vtep, "public-ip": "192.0.2.11"}},
		{"vxlan, dual stack", nil,
			lease.Attrs{PublicIP: ipv4, PublicIPv6: ipv6, BackendType: "vxlan", BackendData: json.RawMessage(vtep), BackendV6Data: json.RawMessage(vtep6)},
			map[string]string{"backend-type": "vxlan", "backend-data": vtep, "public-ip": "192.0.2.11", "backend-v6-data": vtep6, "public-ipv6": "2001:db8::11"}},
		{"vxlan, IPv6 alone", nil,
			lease.Attrs{PublicIPv6: ipv6, BackendType: "vxlan", BackendV6Data: json.RawMessage(vtep6)},
			map[string]string{"backend-type": "vxlan", "backend-v6-data": vtep6, "public-ipv6": "2001:db8::11"}},
		{"host-gw", nil,
			lease.Attrs{PublicIP: ipv4, BackendType: "host-gw"},
			map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.11"}},
		{"host-gw, IPv6 alone", nil,
			lease.Attrs{PublicIPv6: ipv6, BackendType: "host-gw"},
			map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "0.0.0.0", "backend-v6-data": "null", "public-ipv6": "2001:db8::11"}},
		{"udp and alloc", nil,
			lease.Attrs{PublicIP: ipv4},
			map[string]string{"backend-type": "", "backend-data": "null", "public-ip": "192.0.2.11"}},
		{"overwritten addresses", map[string]string{"public-ip-overwrite": "203.0.113.5", "public-ipv6-overwrite": "2001:db8::5"},
			lease.Attrs{PublicIP: ipv4, PublicIPv6: ipv6, BackendType: "host-gw"},
			map[string]string{"backend-type": "host-gw", "backend-data": "null", "public-ip": "203.0.113.5", "backend-v6-data": "null", "public-ipv6": "2001:db8::5"}},
	} {
		e := &Node{Name: "n1", Annotations: map[string]string{}}
		for key, v := range tt.user {
			e.Annotations[prefix+key] = v
		}
		want, err := k.Wanted(e, tt.attrs, now)
		if err != nil {
			t.Fatal(err)
		}
		apply(e, k.Changes(e, want))
		expect := map[string]string{prefix + "kube-subnet-manager": "true"}
		for key, v := range tt.want {
			expect[prefix+key] = v
		}
		for key, v := range tt.user {
			expect[prefix+key] = v
		}
		if !maps.Equal(e.Annotations, expect) {
			t.Errorf("%s: got\n%v, want\n%v", tt.name, e.Annotations, expect)
		}
		// A restart writes nothing.
		again, err := k.Wanted(e, tt.attrs, now.Add(time.Hour))
		if c := k.Changes(e, again); err != nil || len(c) > 0 {
			t.Errorf("%s: a restart changes %v, %v", tt.name, c, err)
		}
	}
}

// apply does to e what the API does with a patch.
func apply(e *Node, changes map[string]any) {
	for key, v := range changes {
		if v == nil {
			delete(e.Annotations, key)
		} else {
			e.Annotations[key] = v.(string)
		}
	}
}

// TestMoreThanStockHasGoesIntoAnAnnotationOfItsOwn and comes back from there.
func TestMoreThanStockHasGoesIntoAnAnnotationOfItsOwn(t *testing.T) {
	k := mustKeys(t)
	for _, tt := range []struct {
		attrs lease.Attrs
		data  string // for stock
	}{
		{lease.Attrs{PublicIP: ipv4, BackendType: "vxlan", BackendData: json.RawMessage(`{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3","Backends":["vxlan","udp"],"PartialChecksums":true}`)}, vtep},
		{lease.Attrs{PublicIP: ipv4, BackendData: json.RawMessage(`{"DirectRouting":true,"PartialChecksums":true}`)}, "null"},
	} {
		e := &Node{Name: "n1", PodCIDRs: []string{"10.244.1.0/24"}, Annotations: map[string]string{}}
		want, err := k.Wanted(e, tt.attrs, now)
		if err != nil {
			t.Fatal(err)
		}
		apply(e, k.Changes(e, want))
		if got := e.Annotations[k.data]; got != tt.data {
			t.Errorf("stock reads %s, want %s", got, tt.data)
		}
		l, err := k.Lease(e)
		if err != nil || !l.Attrs.Equal(tt.attrs) {
			t.Errorf("read back %+v, %v; want %+v", l.Attrs, err, tt.attrs)
		}
		again, err := k.Wanted(e, tt.attrs, now.Add(time.Hour))
		if c := k.Changes(e, again); err != nil || len(c) > 0 {
			t.Errorf("a restart changes %v, %v", c, err)
		}

		// Stock takes over, writes nothing since nothing differs, and sets the
		// condition.
		e.Up = now.Add(time.Minute)
		l, err = k.Lease(e)
		if wantData := strings.TrimSuffix(tt.data, "null"); err != nil || string(l.BackendData) != wantData {
			t.Errorf("after stock took over: %s, %v; want %s", l.BackendData, err, wantData)
		}
		// And twilld again.
		again, err = k.Wanted(e, tt.attrs, now.Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		apply(e, k.Changes(e, again))
		if l, err = k.Lease(e); err != nil || !l.Attrs.Equal(tt.attrs) {
			t.Errorf("after twilld took over again: %+v, %v; want %+v", l.Attrs, err, tt.attrs)
		}
	}
}

func TestWhatANodeLeavesBehindIsRemoved(t *testing.T) {
	k := mustKeys(t)
	e := &Node{Name: "n1", Annotations: map[string]string{
		k.managed: "true", k.kind: "vxlan", k.data: vtep, k.public: "192.0.2.11", k.v6Data: vtep6, k.publicV6: "2001:db8::11",
		k.extras: `{"BackendData":{"Backends":["vxlan","udp"]},"Since":"2026-11-29T12:00:00Z"}`, "other": "stays",
	}}
	want, err := k.Wanted(e, lease.Attrs{PublicIP: ipv4, BackendType: "vxlan", BackendData: json.RawMessage(vtep)}, now)
	if err != nil {
		t.Fatal(err)
	}
	got := k.Changes(e, want)
	expect := map[string]any{k.v6Data: nil, k.publicV6: nil, k.extras: nil}
	if !reflect.DeepEqual(got, expect) {
		t.Errorf("got %v, want %v", got, expect)
	}
}

func TestNonsenseOfAnotherWriterIsNamed(t *testing.T) {
	k := mustKeys(t)
	for _, tt := range []struct{ key, value, want string }{
		{k.public, "10.0.0.0/8", k.public + `: "10.0.0.0/8" is not an IPv4 address`},
		{k.public, "", "neither has an address"},
		{k.public, "127.0.0.1", k.public + ": 127.0.0.1 is in 127.0.0.0/8 (loopback)"}, // a socket of any local user's
		{k.public, "224.0.0.1", "multicast"},
		{k.public, "255.255.255.255", "broadcast"},
		{k.publicV6, "::1", "loopback"},
		{k.publicV6, "fe80::1", "link-local"},
		{k.publicV6, "192.0.2.1", k.publicV6 + `: "192.0.2.1" is not an IPv6 address`},
		{k.data, "VNI=1", k.data + `: "VNI=1" is not JSON`},
		{k.extras, "[]", k.extras},
		{k.data, strings.Repeat("x", 1<<20), "…"},
	} {
		e := &Node{Name: "n2", PodCIDRs: []string{"10.244.2.0/24"}, Annotations: map[string]string{k.managed: "true", k.public: "192.0.2.12", k.data: "null"}}
		e.Annotations[tt.key] = tt.value
		_, err := k.Lease(e)
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 300 {
			t.Errorf("%s=%.20s: got %.400v, want %q", tt.key, tt.value, err, tt.want)
		}
	}
}

func FuzzLeaseOfAnnotations(f *testing.F) {
	f.Add("192.0.2.1", "2001:db8::1", vtep, "null", `{"BackendData":{"Backends":["udp"]},"Since":"2026-11-29T12:00:00Z"}`)
	f.Add("", "", "{", "[1]", "{}")
	k, err := NewKeys("")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, public, publicV6, data, v6Data, x string) {
		e := &Node{Name: "n", PodCIDRs: []string{"10.244.1.0/24"}, Annotations: map[string]string{
			k.managed: "true", k.public: public, k.publicV6: publicV6, k.data: data, k.v6Data: v6Data, k.extras: x,
		}}
		l, err := k.Lease(e)
		if err != nil {
			return
		}
		if _, err := json.Marshal(l); err != nil {
			t.Errorf("the lease cannot be encoded: %v", err)
		}
		want, err := k.Wanted(e, l.Attrs, now)
		if err != nil {
			t.Fatal(err)
		}
		apply(e, k.Changes(e, want))
		if again, err := k.Lease(e); err != nil {
			t.Errorf("written back it is not readable: %v, %+v", err, again)
		}
	})
}

// TestListOfNodesIsReadFromJSON as "kubectl get nodes --output=json" prints it.
func TestListOfNodesIsReadFromJSON(t *testing.T) {
	k := mustKeys(t)
	got, err := k.ReadNodes([]byte(`{"kind": "List", "items": [
		{"metadata": {"name": "n1", "annotations": {"flannel.alpha.coreos.com/public-ip": "192.0.2.1", "example.com/other": "is left out"}},
		 "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"]},
		 "status": {"conditions": [{"type": "Ready", "status": "True"},
			{"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp", "lastHeartbeatTime": "2026-11-29T12:00:00Z"}]}},
		{"metadata": {"name": "old"}, "spec": {"podCIDR": "10.244.2.0/24"},
		 "status": {"conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "RouteCreated", "lastHeartbeatTime": null}]}}]}`))
	want := []*Node{
		{Name: "n1", PodCIDRs: []string{"10.244.1.0/24", "fd00::/64"}, Annotations: map[string]string{k.public: "192.0.2.1"},
			Up: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), Unavailable: "False"},
		{Name: "old", PodCIDRs: []string{"10.244.2.0/24"}, Annotations: map[string]string{}, Unavailable: "True"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, text := range []string{"", "[]", `{"items": [{"metadata": "n1"}]}`} {
		if got, err := k.ReadNodes([]byte(text)); err == nil {
			t.Errorf("%q: got %v, want an error", text, got)
		}
	}
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
