package encap

import (
	"bytes"
	"slices"
	"testing"
)

// What Oversize makes of a packet is cut by the kernel into the same segments
// whether the checksum was complete or partial.
func TestOversizeBecomesASuperPacket(t *testing.T) {
	const mtu = TunnelMTU(1472)
	for name, p := range map[string]packet{
		"IPv4":         tcp4(20_001),
		"IPv6":         tcp6(20_001),
		"a byte over":  tcp4(int(mtu) - 40 + 1),
		"timestamps":   tcp4(20_001).with(func(p *packet) { p.tcpOpts = timestamps }),
		"IPv4 options": tcp4(20_001).with(func(p *packet) { p.ipOpts = pattern(12) }),
		"64 KiB":       tcp4(MaxPacket - 40),
		"wraps":        tcp4(20_001).with(func(p *packet) { p.seq, p.id = 0xffffff00, 0xffff }),
		"last flags":   tcp6(20_001).with(func(p *packet) { p.flags |= tcpPSH | tcpFIN }),
	} {
		partial, described := p.super(1)
		want := refSplit(partial, described.CsumStart, protoTCP, int(mtu)-described.HeaderLen)
		for state, pkt := range map[string][]byte{"complete": p.bytes(), "partial": partial} {
			var h Header
			Parse(pkt, &h)
			s, ok := Oversize(pkt, &h, mtu)
			if !ok || !NeedsOversize(&h, mtu) {
				t.Errorf("%s, checksum %s: dropped", name, state)
				continue
			}
			got, err := refDevice(pkt, s)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("%s, checksum %s: %+v makes %d segments, %v", name, state, s, len(got), err)
			}
			for _, seg := range got {
				if len(seg) > int(mtu) {
					t.Errorf("%s: a segment of %d bytes", name, len(seg))
				}
			}
		}
	}
}

func TestOversizeDropsWhatItCannotVouchFor(t *testing.T) {
	damage := func(p packet, at int) []byte {
		b := p.bytes()
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	for name, c := range map[string]struct {
		pkt []byte
		mtu TunnelMTU
	}{
		"payload damaged":          {damage(tcp4(3000), -1), 1472},
		"checksum damaged":         {damage(tcp4(3000), 20+tcpChecksum), 1472},
		"IPv4 header damaged":      {damage(tcp4(3000), ipv4TTL), 1472},
		"IPv6 address damaged":     {damage(tcp6(3000), ipv6Src), 1472},
		"half a TCP header":        {set16(tcp4(0).bytes()[:30], ipv4TotalLen, 30), 25},
		"an MTU below the headers": {tcp4(3000).bytes(), 40},
		"no MTU":                   {tcp4(3000).bytes(), -28},
	} {
		orig := slices.Clone(c.pkt)
		var h Header
		if !Parse(c.pkt, &h) {
			t.Fatalf("%s: malformed", name)
		}
		if s, ok := Oversize(c.pkt, &h, c.mtu); ok {
			t.Errorf("%s: becomes %+v", name, s)
		}
		if !bytes.Equal(c.pkt, orig) {
			t.Errorf("%s: dropped, but written to", name)
		}
	}
}

func TestOnlyTCPLargerThanTheMTUNeedsOversize(t *testing.T) {
	const mtu = 1472
	for name, c := range map[string]struct {
		p    packet
		want bool
	}{
		"TCP":              {tcp4(mtu - 40 + 1), true},
		"TCP over IPv6":    {tcp6(mtu - 60 + 1), true},
		"just the MTU":     {tcp4(mtu - 40), false},
		"UDP":              {udp4(3000), false}, // the size of its datagrams is lost
		"ICMP":             {packet{proto: protoICMP, payload: pattern(3000)}, false},
		"a fragment":       {tcp4(3000).with(func(p *packet) { p.frag = 0x2000 }), false},
		"an IPv6 fragment": {tcp6(3000).with(fragment6), false},
	} {
		var h Header
		Parse(c.p.bytes(), &h)
		if NeedsOversize(&h, mtu) != c.want {
			t.Errorf("%s: %v, want %v", name, !c.want, c.want)
		}
	}
}
