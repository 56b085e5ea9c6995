package dataplane

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/lease"
)

var partial = udp.Announcement{PartialChecksums: true}

func dataOf(text string) *vxlan.Data {
	d, err := vxlan.ParseData(json.RawMessage(text))
	if err != nil {
		panic(err)
	}
	return &d
}

func TestLeaseAnnouncesWhatStockFlannelReadsAndWhatElseTheNodeHas(t *testing.T) {
	for _, tt := range []struct {
		name           string
		ways           []backend.Kind
		v              vteps
		partial        udp.Announcement
		direct         bool
		kind, data, v6 string
	}{
		{"stock's udp", []backend.Kind{backend.UDP}, vteps{}, udp.Announcement{}, false, "", "", ""},
		{"udp", []backend.Kind{backend.UDP}, vteps{}, partial, false, "", `{"PartialChecksums":true}`, ""},
		{"stock's vxlan", []backend.Kind{backend.VXLAN}, vteps{dataOf(vtep1), nil}, partial, false, "vxlan", vtep1, ""},
		{"stock's vxlan, both families", []backend.Kind{backend.VXLAN}, vteps{dataOf(vtep1), dataOf(vtep1)}, partial, false, "vxlan", vtep1, vtep1},
		{"both backends", []backend.Kind{backend.VXLAN, backend.UDP}, vteps{dataOf(vtep1), dataOf(vtep1)}, partial, false, "vxlan", twill, vtep1},
		{"both backends, IPv6", []backend.Kind{backend.VXLAN, backend.UDP}, vteps{nil, dataOf(vtep1)}, udp.Announcement{}, false, "vxlan", `{"Backends":["vxlan","udp"]}`, vtep1},
		{"udp with direct routing", []backend.Kind{backend.UDP}, vteps{}, udp.Announcement{}, true, "", `{"DirectRouting":true}`, ""},
		{"stock's vxlan with direct routing", []backend.Kind{backend.VXLAN}, vteps{dataOf(vtep1), nil}, partial, true, "vxlan", vtep1, ""},
		{"host-gw", []backend.Kind{backend.HostGW}, vteps{}, partial, false, "host-gw", "", ""},
	} {
		a := attrs(backend.Settings{DirectRouting: tt.direct}, backend.Choice{Kinds: tt.ways}, eth0, tt.v, tt.partial, "")
		if a.BackendType != tt.kind || string(a.BackendData) != tt.data || string(a.BackendV6Data) != tt.v6 {
			t.Errorf("%s: %q %s %s, want %q %s %s", tt.name, a.BackendType, a.BackendData, a.BackendV6Data, tt.kind, tt.data, tt.v6)
		}
		// Which host it is stands only where the lease is not as stock flannel's.
		identified := attrs(backend.Settings{DirectRouting: tt.direct}, backend.Choice{Kinds: tt.ways}, eth0, tt.v, tt.partial, "7f")
		node, _ := NodeOf(identified)
		if ours := tt.data != "" && tt.data != vtep1; ours != (node == "7f") || !ours && !identified.Equal(a) {
			t.Errorf("%s: with an ID %s", tt.name, identified.BackendData)
		}
		if a.PublicIP != eth0.PublicIP || a.PublicIPv6 != eth0.PublicIPv6 {
			t.Errorf("%s: at %s and %s", tt.name, a.PublicIP, a.PublicIPv6)
		}
		if got := decode(lease.Lease{Attrs: a}, 1).kinds; !slices.Equal(got, tt.ways) {
			t.Errorf("%s: read as %v", tt.name, got)
		}
	}
}
