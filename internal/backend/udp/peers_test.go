package udp

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// node is the lease of node i: its address on the underlay, IPv4 and IPv6, and
// its pods'.
func node(i byte) lease.Lease {
	return lease.Lease{
		Attrs: lease.Attrs{
			PublicIP:   netip.AddrFrom4([4]byte{192, 0, 2, i}),
			PublicIPv6: netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: i}),
		},
		Subnet:     netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, i, 0}), 24),
		IPv6Subnet: netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0, 0, 5, 0, i}), 64),
	}
}

// peerOf is the node of l as a peer of one whose socket is of the family of local.
func peerOf(l lease.Lease, local netip.Addr) Peer {
	p := Peer{Subnets: l.Subnets(), Addr: l.PublicIP}
	if local.Is6() {
		p.Addr = l.PublicIPv6
	}
	return p
}

func (s nodes) peers(t *testing.T, local netip.Addr, old *fastpath.Peers) *fastpath.Peers {
	t.Helper()
	var peers []Peer
	for _, l := range s {
		peers = append(peers, peerOf(l, local))
	}
	return snapshot(peers, node(1).Subnets(), 8285, old)
}

type nodes []lease.Lease

var (
	local4 = node(1).PublicIP
	local6 = node(1).PublicIPv6
	none   = fastpath.NewPeers(nil, nil)
)

func TestPeersHaveTheirSubnetsAndThePort(t *testing.T) {
	v4only := node(3)
	v4only.IPv6Subnet, v4only.PublicIPv6 = netip.Prefix{}, netip.Addr{}
	peers := nodes{node(2), v4only, node(4)}.peers(t, local4, none)
	want := []struct {
		endpoint string
		subnets  []netip.Prefix
	}{
		{"192.0.2.2:8285", []netip.Prefix{node(2).Subnet, node(2).IPv6Subnet}},
		{"192.0.2.3:8285", []netip.Prefix{node(3).Subnet}},
		{"192.0.2.4:8285", []netip.Prefix{node(4).Subnet, node(4).IPv6Subnet}},
	}
	if len(peers.All()) != len(want) {
		t.Fatalf("%d peers, want %d", len(peers.All()), len(want))
	}
	for i, p := range peers.All() {
		if p.Endpoint.String() != want[i].endpoint || !slices.Equal(p.Subnets, want[i].subnets) {
			t.Errorf("peer %d: %s with %v", i, p.Endpoint, p.Subnets)
		}
	}
}

func TestPeersThatDidNotChangeKeepTheirValue(t *testing.T) {
	before := nodes{node(2), node(3), node(4)}.peers(t, local4, none)
	old := before.All()
	old[0].Traffic.TXPackets.Add(7)

	moved, regrown := node(3), node(4)
	moved.PublicIP = netip.MustParseAddr("192.0.2.33")
	regrown.IPv6Subnet = netip.Prefix{}
	// In another order, with one more node.
	after := nodes{node(5), regrown, moved, node(2)}.peers(t, local4, before)
	got := after.All()
	if len(got) != 4 {
		t.Fatalf("%d peers", len(got))
	}
	if got[3] != old[0] || got[3].Traffic.TXPackets.Load() != 7 {
		t.Error("the peer that did not change is another")
	}
	if slices.Contains(old, got[0]) || slices.Contains(old, got[1]) || slices.Contains(old, got[2]) {
		t.Error("a peer that changed kept its value")
	}
	if got[2].Endpoint.Addr() != moved.PublicIP || len(got[1].Subnets) != 1 {
		t.Errorf("%s, %v", got[2].Endpoint, got[1].Subnets)
	}
	if len(before.All()) != 3 || before.All()[1].Endpoint.Addr() != node(3).PublicIP {
		t.Error("the old snapshot has changed")
	}
}

func TestNodesThatSwapAddressesGetNewPeers(t *testing.T) {
	a, b := node(2), node(3)
	before := nodes{a, b}.peers(t, local4, none)
	a.PublicIP, b.PublicIP = b.PublicIP, a.PublicIP
	after := nodes{a, b}.peers(t, local4, before)
	for i, l := range []lease.Lease{a, b} {
		p := after.All()[i]
		if p.Endpoint.Addr() != l.PublicIP || p.Subnets[0] != l.Subnet {
			t.Errorf("peer %d: %s with %v", i, p.Endpoint, p.Subnets)
		}
	}
}

func TestLocalAddrPrefersIPv4(t *testing.T) {
	for _, tt := range []struct {
		u    underlay.Interface
		want netip.Addr
	}{
		{underlay.Interface{IPv4: local4, IPv6: local6}, local4},
		{underlay.Interface{IPv4: local4}, local4},
		{underlay.Interface{IPv6: local6}, local6},
	} {
		if got, err := LocalAddr(tt.u); err != nil || got != tt.want {
			t.Errorf("%+v: %s, %v", tt.u, got, err)
		}
	}
	if _, err := LocalAddr(underlay.Interface{Name: "eth7"}); err == nil {
		t.Error("an interface without addresses is taken")
	}
}
