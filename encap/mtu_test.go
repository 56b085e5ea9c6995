package encap

import (
	"net/netip"
	"testing"
)

func TestTunnelMTU(t *testing.T) {
	v4, v6, mapped := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("::ffff:192.0.2.1")
	for _, c := range []struct {
		underlay UnderlayMTU
		addr     netip.Addr
		want     TunnelMTU
	}{
		{1500, v4, 1472}, {1500, mapped, 1472}, {1500, v6, 1452},
		{9000, v4, 8972}, {9000, v6, 8952},
		{65535, v4, 65507}, {65536, v4, 65507}, // lo: a datagram holds no more
		{65535, v6, 65487}, {65536, v6, 65487},
		{68, v4, 40}, {0, v4, -28},
	} {
		if got := c.underlay.Tunnel(c.addr); got != c.want {
			t.Errorf("underlay %d from %v: %d, want %d", c.underlay, c.addr, got, c.want)
		}
	}
}

func TestOverheadIsWhatADatagramAdds(t *testing.T) {
	p := udp4(100)
	if got, want := Overhead(netip.MustParseAddr("192.0.2.1")), len(p.bytes())-100; got != want {
		t.Errorf("IPv4: %d, want %d", got, want)
	}
	p.v6 = true
	if got, want := Overhead(netip.MustParseAddr("2001:db8::1")), len(p.bytes())-100; got != want {
		t.Errorf("IPv6: %d, want %d", got, want)
	}
}

func TestUsableMTU(t *testing.T) {
	for _, c := range []struct {
		mtu    TunnelMTU
		v4, v6 bool
	}{
		{-28, false, false}, {0, false, false}, {67, false, false}, {68, true, false},
		{1279, true, false}, {1280, true, true}, {65507, true, true},
	} {
		if c.mtu.Usable(false) != c.v4 || c.mtu.Usable(true) != c.v6 {
			t.Errorf("%d: IPv4 %v, IPv6 %v", c.mtu, c.mtu.Usable(false), c.mtu.Usable(true))
		}
	}
}
