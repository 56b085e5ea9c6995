package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/lease"
)

// many returns the leases of n nodes on one link, all of the same kind.
func many(n int, kind string, data func(i int) string) []lease.Lease {
	leases := make([]lease.Lease, n)
	for i := range leases {
		l := leaseOf(2, kind, data(i))
		l.PublicIP = netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		if l.PublicIP == netip.MustParseAddr("192.0.2.255") { // eth0 broadcasts to it
			l.PublicIP = netip.MustParseAddr("192.0.200.1")
		}
		l.Subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5 + byte(i>>12), byte(i >> 4), byte(i) << 4}), 28)
		leases[i] = l
	}
	return leases
}

func vtepNumber(i int) string {
	return fmt.Sprintf(`{"VNI":1,"VtepMAC":"8e:3b:1c:52:%02x:%02x"}`, i>>8, i&255)
}

func nothing(int) string { return "" }

const thousands = 5000

// wide is the configuration of a network with room for thousands of nodes.
func (n node) wide(asked string) Config {
	cfg := n.config(asked)
	cfg.Networks[0] = netip.MustParsePrefix("10.0.0.0/8")
	cfg.Own.Subnet = netip.MustParsePrefix("10.200.0.0/28")
	return cfg
}

func TestFiveThousandPeersAreAllProgrammed(t *testing.T) {
	inside(t, func(n node) {
		p, _ := n.open(n.wide(`{"Type": "vxlan"}`))
		leases := many(thousands, "vxlan", vtepNumber)
		p.SetLeases(leases)
		flannel1 := n.link("flannel.1").Attrs().Index
		routes := must(n.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: flannel1}, netlink.RT_FILTER_OIF))
		neighbours := must(n.nl.NeighList(flannel1, netlink.FAMILY_V4))
		fdb := must(n.nl.NeighList(flannel1, unix.AF_BRIDGE))
		if len(routes) != thousands || len(neighbours) != thousands || len(fdb) != thousands {
			t.Errorf("%d routes, %d neighbours, %d FDB entries, want %d of each", len(routes), len(neighbours), len(fdb), thousands)
		}
		p.SetLeases(leases[:1])
		n.wantRoutes("10.5.0.0/28 via 10.5.0.0 dev flannel.1")
	})
}

// BenchmarkPeers programs 5,000 peers, and changes one of them.
func BenchmarkPeers(b *testing.B) {
	for _, bb := range []struct {
		backend string
		leases  []lease.Lease
	}{
		{`{"Type": "vxlan"}`, many(thousands, "vxlan", vtepNumber)},
		{`{"Type": "host-gw"}`, many(thousands, "host-gw", nothing)},
		{`{"Type": "udp"}`, many(thousands, "", nothing)},
	} {
		changed := append([]lease.Lease(nil), bb.leases...)
		changed[17].PublicIP = netip.MustParseAddr("192.0.255.255")
		b.Run("program/"+bb.backend, func(b *testing.B) {
			inside(b, func(n node) {
				for b.Loop() {
					b.StopTimer()
					p := must(Open(n.wide(bb.backend)))
					b.StartTimer()
					p.SetLeases(bb.leases)
					b.StopTimer()
					p.SetLeases(nil)
					n.must(p.Close())
					b.StartTimer()
				}
			})
		})
		b.Run("change/"+bb.backend, func(b *testing.B) {
			inside(b, func(n node) {
				p, end := n.open(n.wide(bb.backend))
				p.SetLeases(bb.leases)
				for i := 0; b.Loop(); i++ {
					p.SetLeases([][]lease.Lease{changed, bb.leases}[i%2])
				}
				b.StopTimer()
				end()
			})
		})
	}
}
