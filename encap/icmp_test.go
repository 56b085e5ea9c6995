package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// answer returns the errors about the packet b, or nil.
func answer(t *testing.T, b []byte, mtu TunnelMTU) (tooBig, unreachable []byte) {
	t.Helper()
	var h Header
	if !Parse(b, &h) {
		t.Fatalf("malformed: % x", b)
	}
	orig := bytes.Clone(b)
	tooBig = TooBig(filled(MaxICMP, 0xee), b, &h, mtu) // memory that was used before
	unreachable = Unreachable(filled(MaxICMP, 0xee), b, &h)
	if !bytes.Equal(b, orig) {
		t.Error("the packet was written to")
	}
	return tooBig, unreachable
}

// checkICMP holds the error e about the packet about against the RFCs, with
// x/net's decoder as the second opinion.
func checkICMP(e, about []byte, typ icmp.Type, code, mtu int) error {
	var h, ah Header
	if !Parse(e, &h) || !Parse(about, &ah) {
		return fmt.Errorf("malformed: % x", e)
	}
	if h.Src != ah.Dst || h.Dst != ah.Src {
		return fmt.Errorf("from %v to %v about a packet from %v to %v", h.Src, h.Dst, ah.Src, ah.Dst)
	}
	limit, pseudo, ttl := 576, []byte(nil), e[8]
	if h.Version == 6 {
		limit, pseudo, ttl = 1280, refPseudo(e, 58, len(e)-40), e[7]
	} else if refSum(e[:20]) != 0xffff {
		return fmt.Errorf("IPv4 header checksum wrong")
	}
	if ttl < 2 || h.Fragment || len(e) > limit {
		return fmt.Errorf("TTL %d, fragment %v, %d bytes", ttl, h.Fragment, len(e))
	}
	msg := e[h.IPLen:]
	if refSum(pseudo, msg) != 0xffff {
		return fmt.Errorf("ICMP checksum wrong")
	}
	m, err := icmp.ParseMessage(int(h.Proto), msg)
	if err != nil || m.Type != typ || m.Code != code {
		return fmt.Errorf("type %v code %d, %v; want %v code %d", m.Type, m.Code, err, typ, code)
	}
	if n := binary.BigEndian.Uint32(msg[4:]); n != uint32(mtu) {
		return fmt.Errorf("MTU field %d, want %d", n, mtu)
	}
	if want := about[:min(len(about), limit-h.IPLen-8)]; !bytes.Equal(msg[8:], want) {
		return fmt.Errorf("quotes %d bytes, want the first %d", len(msg)-8, len(want))
	}
	return nil
}

func TestICMPErrors(t *testing.T) {
	for name, p := range map[string]packet{
		"tcp4": tcp4(1433), "tcp6": tcp6(1433),
		"shorter than any limit":     udp4(0),
		"IPv6 shorter":               udp6(0),
		"just the limit":             udp4(576 - 28 - 28),
		"a byte over the limit":      udp4(576 - 28 - 28 + 1),
		"IPv6, just the limit":       udp6(1280 - 48 - 48),
		"IPv6, a byte over":          udp6(1280 - 48 - 48 + 1),
		"a super-packet":             tcp4(MaxPacket - 40),
		"IPv4 options":               tcp4(100).with(func(p *packet) { p.ipOpts = pattern(40) }),
		"first fragment":             udp4(1400).with(func(p *packet) { p.frag = 0x2000 }),
		"IPv6 extension headers":     udp6(1400).with(func(p *packet) { p.ext = []extHeader{hopByHop, destOpts16} }),
		"IPv6 first fragment":        udp6(1400).with(fragment6),
		"IPv6 later fragment":        udp6(1400).with(laterFragment6),
		"ping":                       packet{src: 1, dst: 2, proto: 1, payload: []byte{8, 0, 0, 0}},
		"ping6":                      packet{v6: true, src: 1, dst: 2, proto: 58, payload: []byte{128, 0, 0, 0}},
		"an unknown protocol":        packet{src: 1, dst: 2, proto: 253},
		"an unknown next header":     packet{v6: true, src: 1, dst: 2, proto: 253},
		"ICMP's number in IPv6":      packet{v6: true, src: 1, dst: 2, proto: 1, payload: []byte{3, 1}},
		"an extension header, cut":   packet{v6: true, src: 1, dst: 2, proto: 60, payload: []byte{58}},
		"the other's ICMP over v4":   packet{src: 1, dst: 2, proto: 58, payload: []byte{1, 1}},
		"ping behind IPv6 options":   packet{v6: true, src: 1, dst: 2, proto: 58, ext: []extHeader{destOpts16}, payload: []byte{128, 0}},
		"ping behind authentication": packet{v6: true, src: 1, dst: 2, proto: 58, ext: []extHeader{authHeader}, payload: append([]byte{128}, make([]byte, 30)...)},
		"not ICMP in a later piece":  packet{v6: true, src: 1, dst: 2, proto: 58, payload: []byte{1, 4}}.with(laterFragment6),
	} {
		b := p.bytes()
		tooBig, unreachable := answer(t, b, 1400)
		big, gone, code := icmp.Type(ipv4.ICMPTypeDestinationUnreachable), icmp.Type(ipv4.ICMPTypeDestinationUnreachable), 4
		if p.v6 {
			big, gone, code = ipv6.ICMPTypePacketTooBig, ipv6.ICMPTypeDestinationUnreachable, 0
		}
		if err := checkICMP(tooBig, b, big, code, 1400); err != nil {
			t.Errorf("%s, too big: %v", name, err)
		}
		if err := checkICMP(unreachable, b, gone, 0, 0); err != nil {
			t.Errorf("%s, unreachable: %v", name, err)
		}
	}
}

// laterFragment6 makes p a fragment other than the first.
func laterFragment6(p *packet) {
	p.ext = append(p.ext, extHeader{protoIPv6Frag, []byte{0, 0, 8, 0, 0, 0, 9}})
}

// RFC 1122 §3.2.2, RFC 4443 §2.4(e).
func TestNoICMPErrorIsSent(t *testing.T) {
	cases := map[string][]byte{
		"about a fragment that is not the first": udp4(1400).with(func(p *packet) { p.frag = 0x2001 }).bytes(),
		"about the last fragment":                udp4(1400).with(func(p *packet) { p.frag = 0x00b9 }).bytes(),
		"about ICMP without a type":              packet{src: 1, dst: 2, proto: 1}.bytes(),
		"about ICMPv6 without a type":            packet{v6: true, src: 1, dst: 2, proto: 58}.bytes(),
		"about an error behind options": packet{v6: true, src: 1, dst: 2, proto: 58,
			ext: []extHeader{hopByHop, destOpts16}, payload: []byte{1, 0}}.bytes(),
		"about a fragmented error": packet{v6: true, src: 1, dst: 2, proto: 58, payload: []byte{2, 0}}.with(fragment6).bytes(),
		"about an error behind an authentication header": packet{v6: true, src: 1, dst: 2, proto: 58,
			ext: []extHeader{authHeader}, payload: []byte{3, 0}}.bytes(),
	}
	for _, typ := range []byte{3, 4, 5, 11, 12} {
		cases[fmt.Sprint("about ICMP type ", typ)] = packet{src: 1, dst: 2, proto: 1, payload: []byte{typ, 0}}.bytes()
	}
	for _, typ := range []byte{0, 1, 2, 3, 4, 127, 137} { // errors, and redirect
		cases[fmt.Sprint("about ICMPv6 type ", typ)] = packet{v6: true, src: 1, dst: 2, proto: 58, payload: []byte{typ, 0}}.bytes()
	}
	for _, a := range []string{"0.0.0.0", "255.255.255.255", "224.0.0.1", "127.0.0.1", "169.254.0.1", "::", "::1", "ff02::1", "fe80::1"} {
		addr := netip.MustParseAddr(a)
		src, dst := udp4(9).bytes(), udp4(9).bytes()
		at := ipv4Src
		if addr.Is6() {
			src, dst = udp6(9).bytes(), udp6(9).bytes()
			at = ipv6Src
		}
		copy(src[at:], addr.AsSlice())
		copy(dst[at+addr.BitLen()/8:], addr.AsSlice())
		cases["to "+a], cases["from "+a] = src, dst
	}
	for name, b := range cases {
		if tooBig, unreachable := answer(t, b, 1400); tooBig != nil || unreachable != nil {
			t.Errorf("%s: too big % x, unreachable % x", name, tooBig, unreachable)
		}
	}
}

func TestICMPErrorsAreNotAnsweredWithErrors(t *testing.T) {
	for _, p := range []packet{tcp4(1400), tcp6(1400)} {
		first, _ := answer(t, p.bytes(), 1300)
		if again, _ := answer(t, first, 100); again != nil {
			t.Errorf("an error about an error: % x", again)
		}
	}
}

func TestICMPDoesNotAllocate(t *testing.T) {
	dst := make([]byte, MaxICMP)
	for _, p := range []packet{tcp4(1400), tcp6(1400).with(func(p *packet) { p.ext = []extHeader{hopByHop} })} {
		b := p.bytes()
		var h Header
		Parse(b, &h)
		if n := testing.AllocsPerRun(10, func() { TooBig(dst, b, &h, 1300); Unreachable(dst, b, &h) }); n != 0 {
			t.Errorf("IPv%d: %v allocations", h.Version, n)
		}
	}
}

func TestEchoRequestIsOne(t *testing.T) {
	for _, tt := range []struct {
		src, dst string
		typ      icmp.Type
		proto    int
		ipLen    int
	}{
		{"10.5.1.0", "10.5.2.0", ipv4.ICMPTypeEcho, protoICMP, ipv4HeaderLen},
		{"fd00:5:1::", "fd00:5:2::", ipv6.ICMPTypeEchoRequest, protoICMPv6, ipv6HeaderLen},
	} {
		src, dst := netip.MustParseAddr(tt.src), netip.MustParseAddr(tt.dst)
		for _, size := range []int{MinEcho, 1472} {
			b := Echo(filled(2000, 0xee), src, dst, size)
			var h Header
			if !Parse(b, &h) || h.Src != src || h.Dst != dst || len(b) != size || !h.DontFragment(b) {
				t.Errorf("%s, %d bytes: % x", tt.dst, size, b[:MinEcho])
				continue
			}
			m, err := icmp.ParseMessage(tt.proto, b[tt.ipLen:])
			if err != nil || m.Type != tt.typ || m.Code != 0 {
				t.Errorf("%s, %d bytes: message %+v, error %v", tt.dst, size, m, err)
			}
			acc := uint64(0)
			if src.Is6() {
				acc = pseudoSum(b, protoICMPv6, size-tt.ipLen)
			}
			if fold(sum(b[tt.ipLen:], acc)) != 0xffff || src.Is4() && fold(sum(b[:ipv4HeaderLen], 0)) != 0xffff {
				t.Errorf("%s, %d bytes: a checksum is wrong", tt.dst, size)
			}
		}
	}
}
