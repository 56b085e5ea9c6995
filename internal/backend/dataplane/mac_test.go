package dataplane

import (
	"net"
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// announcedMAC is what a node at public announces, with what it knows of itself.
func announcedMAC(t *testing.T, public string, self Self) string {
	t.Helper()
	c := config(t, `{"Type": "vxlan"}`)
	u := underlay.Interface{Name: "eth0", Index: 2, MTU: 1500, IPv4: netip.MustParseAddr(public), PublicIP: netip.MustParseAddr(public)}
	a, err := Announce(settings(t, `{"Type": "vxlan"}`), backend.Choice{Kinds: []backend.Kind{backend.VXLAN, backend.UDP}}, c, u, self, partial)
	if err != nil {
		t.Fatal(err)
	}
	p := decode(lease.Lease{Attrs: a, Subnet: netip.MustParsePrefix("10.5.1.0/24")}, 1)
	if p.v4.err != nil {
		t.Fatal(p.v4.err)
	}
	return p.v4.VtepMAC.String()
}

// A has moved from 192.0.2.11 to .21, with the device that it made there; C starts
// at .11.
func TestTwoNodesNeverAnnounceOneMAC(t *testing.T) {
	mac := announcedMAC(t, "192.0.2.11", Self{})
	vtep := `{"VNI":1,"VtepMAC":"` + mac + `"}`
	leaseOfNode := func(i byte) lease.Lease { return leaseOf(i, "vxlan", vtep) }
	a, c := leaseOfNode(1), leaseOfNode(3)
	there := Self{MACs: MACs{v4: net.HardwareAddr(decode(a, 1).v4.VtepMAC)}}

	fresh := announcedMAC(t, "192.0.2.11", Self{Leases: []lease.Lease{a}, Own: lease.Lease{Subnet: c.Subnet}})
	if fresh == mac {
		t.Error("a node that starts takes the MAC of another")
	}
	if again := announcedMAC(t, "192.0.2.11", Self{Leases: []lease.Lease{a}, Own: lease.Lease{Subnet: c.Subnet}}); again != fresh {
		t.Errorf("it takes %s, then %s", fresh, again)
	}
	both := []lease.Lease{a, c}
	self := func(own lease.Lease) Self { return Self{MACs: there.MACs, Leases: both, Own: own} }
	if got := announcedMAC(t, "192.0.2.21", self(a)); got != mac {
		t.Errorf("of two that have it, the first has changed to %s", got)
	}
	if got := announcedMAC(t, "192.0.2.11", self(c)); got == mac {
		t.Error("of two that have it, the second has not changed")
	}
	// A former lease of the same host is not another node.
	former := a
	former.BackendData = []byte(`{"VNI":1,"VtepMAC":"` + mac + `","Backends":["vxlan","udp"],"Node":"7f"}`)
	if got := announcedMAC(t, "192.0.2.21", Self{MACs: there.MACs, ID: "7f", Leases: []lease.Lease{former}, Own: c}); got != mac {
		t.Errorf("it has changed for a lease of its own: %s", got)
	}
}
