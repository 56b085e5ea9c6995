package daemon

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// An etcd that is given by its name is as easily cut off by a pod subnet as another.
func TestEtcdIsAnAddressInUseHoweverItIsNamed(t *testing.T) {
	h := newRig(t)
	h.gateways = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("192.0.2.254")}, nil }
	for endpoint, want := range map[string]string{
		"http://localhost:2379": "127.0.0.1", "10.5.2.9:2379": "10.5.2.9", "https://[fd00::9]:2379": "fd00::9",
	} {
		h.etcdAddrs = nil
		h.options.etcd.Endpoints = []string{endpoint}
		for range 2 {
			got := h.inUse()
			for _, a := range []string{want, "192.0.2.254"} {
				if !slices.Contains(got, netip.MustParseAddr(a)) {
					t.Errorf("%s: got %v, want %s among them", endpoint, got, a)
				}
			}
		}
	}
	h.etcdAddrs = nil
	h.options.etcd.Endpoints = []string{"http://etcd.invalid:2379"}
	h.inUse()
	if !strings.Contains(h.log.String(), "etcd.invalid:2379") {
		t.Errorf("the log does not name the endpoint that has no address:\n%s", h.log.String())
	}
}
