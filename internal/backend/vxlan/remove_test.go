package vxlan

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// leave makes devices as they are left on a host: by name, VNI and address.
func (h host) leave() {
	h.Helper()
	for _, d := range []struct {
		name, addr string
		vni        int
	}{
		{"flannel.1", "10.5.1.0/32", 1},
		{"flannel-v6.1", "fd00:5:0:1::/128", 2}, // another VNI, since neither has a local address
		{"flannel.4096", "10.5.1.0/32", 4096},
		{"flannel.7", "10.9.1.0/32", 7}, // of another cluster
		{"flannel.8", "", 8},
		{"flannel1", "10.5.7.0/32", 9},
		{"flannel.1x", "10.5.7.0/32", 10},
		{"vxlan.1", "10.5.7.0/32", 11},
	} {
		h.must(h.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: d.name}, VxlanId: d.vni, Port: 8472}))
		if d.addr != "" {
			h.must(h.nl.AddrAdd(h.link(d.name), addr(d.addr)))
		}
	}
	h.must(h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "flannel.9"}}))
	h.must(h.nl.AddrAdd(h.link("flannel.9"), addr("10.5.7.0/32")))
}

func TestDevicesThatAreLeftAreKnownByNameAndKind(t *testing.T) {
	inside(t, func(h host) {
		if names, err := Left(); len(names) > 0 || err != nil {
			t.Errorf("on a host without any: %v, %v", names, err)
		}
		h.leave()
		names, err := Left()
		if want := []string{"flannel-v6.1", "flannel.1", "flannel.4096", "flannel.7", "flannel.8"}; err != nil || !slices.Equal(slices.Sorted(slices.Values(names)), want) {
			t.Errorf("%v, %v, want %v", names, err, want)
		}
		names, err = LeftOf(networks)
		if want := []string{"flannel-v6.1", "flannel.1", "flannel.4096"}; err != nil || !slices.Equal(slices.Sorted(slices.Values(names)), want) {
			t.Errorf("of the cluster %v, %v, want %v", names, err, want)
		}
		if names, err := LeftOf([]netip.Prefix{netip.MustParsePrefix("10.5.0.0/24")}); len(names) > 0 || err != nil {
			t.Errorf("of another network %v, %v", names, err)
		}
	})
}

func TestRemoveTakesNoOtherKindOfInterface(t *testing.T) {
	inside(t, func(h host) {
		h.leave()
		h.must(Remove("flannel.4096"), Remove("flannel.4096"), Remove("flannel.9"))
		if _, err := h.nl.LinkByName("flannel.4096"); err == nil {
			t.Error("flannel.4096 is still there")
		}
		h.link("flannel.9")
		h.link("flannel.1")
	})
}
