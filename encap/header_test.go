package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
)

func TestParse(t *testing.T) {
	a4, b4 := netip.MustParseAddr("10.5.1.1"), netip.MustParseAddr("10.5.2.2")
	a6, b6 := netip.MustParseAddr("fd00:0:0:1::1"), netip.MustParseAddr("fd00:0:0:2::2")
	for name, c := range map[string]struct {
		p    packet
		want Header // Src, Dst, Version and Len are filled in
	}{
		"tcp4":                       {tcp4(10), Header{IPLen: 20, Proto: protoTCP}},
		"udp4 empty":                 {udp4(0), Header{IPLen: 20, Proto: protoUDP}},
		"tcp6":                       {tcp6(10), Header{IPLen: 40, Proto: protoTCP}},
		"udp6":                       {udp6(3), Header{IPLen: 40, Proto: protoUDP}},
		"DSCP and ECN of v4":         {tcp4(1).with(func(p *packet) { p.tos = 0xbb }), Header{IPLen: 20, Proto: protoTCP, TOS: 0xbb}},
		"DSCP and ECN of v6":         {tcp6(1).with(func(p *packet) { p.tos = 0xbb; p.label = 0xfffff }), Header{IPLen: 40, Proto: protoTCP, TOS: 0xbb}},
		"IPv4 options":               {tcp4(1).with(func(p *packet) { p.ipOpts = make([]byte, 40) }), Header{IPLen: 60, Proto: protoTCP}},
		"only an IPv4 header":        {packet{src: 1, dst: 2, proto: 59}, Header{IPLen: 20, Proto: 59}},
		"only an IPv6 header":        {packet{v6: true, src: 1, dst: 2, proto: 59}, Header{IPLen: 40, Proto: 59}},
		"IPv6 extension header":      {tcp6(1).with(func(p *packet) { p.ext = []extHeader{hopByHop} }), Header{IPLen: 40, Proto: 0}},
		"DF alone is not a fragment": {tcp4(1).with(func(p *packet) { p.frag = 0x4000 }), Header{IPLen: 20, Proto: protoTCP}},
		"first fragment":             {tcp4(8).with(func(p *packet) { p.frag = 0x2000 }), Header{IPLen: 20, Proto: protoTCP, Fragment: true}},
		"middle fragment":            {tcp4(8).with(func(p *packet) { p.frag = 0x2001 }), Header{IPLen: 20, Proto: protoTCP, Fragment: true}},
		"last fragment":              {tcp4(8).with(func(p *packet) { p.frag = 0x1fff }), Header{IPLen: 20, Proto: protoTCP, Fragment: true}},
		"IPv6 fragment":              {udp6(8).with(fragment6), Header{IPLen: 40, Proto: protoIPv6Frag, Fragment: true}},
		"largest IPv4":               {udp4(MaxPacket - 28), Header{IPLen: 20, Proto: protoUDP}},
	} {
		b := c.p.bytes()
		want := c.want
		want.Len, want.Version, want.Src, want.Dst = len(b), 4, a4, b4
		if c.p.v6 {
			want.Version, want.Src, want.Dst = 6, a6, b6
		}
		var h Header
		if !Parse(b, &h) || h != want {
			t.Errorf("%s:\n got %+v\nwant %+v", name, h, want)
		}
	}
}

// fragment6 makes p the first of several fragments.
func fragment6(p *packet) {
	p.ext = append(p.ext, extHeader{protoIPv6Frag, []byte{0, 0, 1, 0, 0, 0, 9}}) // RFC 8200 §4.5
}

func TestParseOverwritesWhatTheHeaderHeld(t *testing.T) {
	h := Header{Fragment: true, TOS: 0xff, Proto: 99, Len: 1, IPLen: 1}
	if !Parse(tcp6(1).bytes(), &h) || h.Fragment || h.TOS != 0 || h.Proto != protoTCP || h.IPLen != 40 {
		t.Errorf("%+v", h)
	}
}

func TestParseRefusesTheMalformed(t *testing.T) {
	v4, v6 := tcp4(9).bytes(), tcp6(9).bytes()
	cases := map[string][]byte{
		"nil": nil, "a 4 alone": {0x45}, "a 6 alone": {0x60},
		"IPv4, a byte too many": append(slices.Clone(v4), 0),
		"IPv6, a byte too many": append(slices.Clone(v6), 0),
		"IPv4 of length 0":      set16(v4, ipv4TotalLen, 0), // BIG TCP
		"IPv6 jumbogram":        set16(v6, ipv6PayloadLen, 0),
		"IHL beyond the packet": {0x4f, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2},
		"an ARP request":        append([]byte{0, 1, 8, 0, 6, 4, 0, 1}, make([]byte, 20)...),
	}
	for ihl := range byte(5) {
		cases[fmt.Sprint("IHL ", ihl)] = set8(v4, 0, 0x40|ihl)
	}
	for version := range byte(16) {
		if version != 4 && version != 6 {
			cases[fmt.Sprint("version ", version)] = set8(v4, 0, version<<4|5)
		}
	}
	for name, b := range cases {
		if h := new(Header); Parse(b, h) {
			t.Errorf("%s: accepted as %+v", name, h)
		}
	}
	for _, whole := range [][]byte{v4, v6} {
		for n := range whole {
			if h := new(Header); Parse(whole[:n:n], h) {
				t.Errorf("cut to %d bytes: accepted as %+v", n, h)
			}
		}
	}
}

func set8(b []byte, at int, x byte) []byte {
	b = slices.Clone(b)
	b[at] = x
	return b
}

func set16(b []byte, at int, x uint16) []byte {
	b = slices.Clone(b)
	binary.BigEndian.PutUint16(b[at:], x)
	return b
}

func TestDontFragment(t *testing.T) {
	for name, c := range map[string]struct {
		p    packet
		want bool
	}{
		"DF":     {tcp4(1), true},
		"no DF":  {tcp4(1).with(func(p *packet) { p.frag = 0 }), false},
		"MF":     {tcp4(1).with(func(p *packet) { p.frag = 0x2000 }), false},
		"offset": {tcp4(1).with(func(p *packet) { p.frag = 0x1fff }), false},
		"IPv6":   {tcp6(1), true},
	} {
		var h Header
		b := c.p.bytes()
		if !Parse(b, &h) || h.DontFragment(b) != c.want {
			t.Errorf("%s: %v, want %v", name, !c.want, c.want)
		}
	}
}

// FuzzParse feeds what Parse accepts to all that trusts it: nothing may panic
// or write a packet that Parse refuses.
func FuzzParse(f *testing.F) {
	for _, p := range []packet{
		tcp4(30), tcp6(30), udp4(0), udp6(1),
		tcp4(8).with(func(p *packet) { p.frag = 0x2000; p.ipOpts = make([]byte, 4) }),
		tcp6(8).with(func(p *packet) { p.ext = []extHeader{hopByHop, destOpts16} }, fragment6),
		packet{proto: protoICMP, payload: []byte{3, 4, 0, 0}},
	} {
		f.Add(p.bytes(), 20, 16, 7)
		f.Add(p.bytes(), math.MaxInt, math.MaxInt, math.MaxInt) // sums of these wrap
	}
	f.Fuzz(func(t *testing.T, b []byte, start, offset, size int) {
		orig := slices.Clone(b)
		var h Header
		if !Parse(b, &h) {
			return
		}
		if !bytes.Equal(b, orig) {
			t.Fatal("Parse wrote to the packet")
		}
		at, n := 12, 4
		if b[0]>>4 == 6 {
			at, n = 8, 16
		}
		src, _ := netip.AddrFromSlice(b[at : at+n])
		dst, _ := netip.AddrFromSlice(b[at+n : at+2*n])
		if h.Len != len(b) || h.IPLen > h.Len || h.Version != b[0]>>4 || h.Src != src || h.Dst != dst {
			t.Fatalf("%+v of % x", h, b)
		}
		var s Splitter
		for _, super := range []Super{
			{Kind: SegTCP, Size: size}, {Kind: SegUDP, Size: size}, {Kind: Kind(size), Size: size},
			{Kind: SegTCP, Size: size, Partial: true, CsumStart: start, CsumOffset: 16},
			{Kind: SegUDP, Size: size, Partial: true, CsumStart: start, CsumOffset: 6},
		} {
			if s.Reset(b, &h, super) != nil {
				if s.Remaining() != 0 {
					t.Fatalf("%+v refused with segments left", super)
				}
				continue
			}
			if super.Partial { // the field looks like what the kernel leaves there
				if err := s.Reset(refPartial(slices.Clone(b), start, super.Kind.proto()), &h, super); err != nil {
					t.Fatalf("%+v: %v", super, err)
				}
			}
			var hdr [MaxPacket]byte
			got, ipLen := 0, s.ipLen
			if s.Remaining() < 1 {
				t.Fatalf("%+v makes %d segments", super, s.Remaining())
			}
			for range min(s.Remaining(), 1000) {
				payload := s.Next(hdr[:])
				seg := slices.Concat(hdr[:s.HeaderLen()], payload)
				if err := refVerify(seg, ipLen, super.Kind.proto()); err != nil {
					t.Fatal(err)
				}
				got += len(payload)
			}
			if s.Remaining() == 0 && got != len(b)-s.HeaderLen() {
				t.Fatalf("segments hold %d of %d payload bytes", got, len(b)-s.HeaderLen())
			}
		}
		c := NewCoalescer(4, true, true)
		for range 3 {
			c.Add(b, &h)
		}
		for i := range c.Runs() {
			c.Vectors(&c.Runs()[i], nil)
		}
		if !bytes.Equal(b, orig) {
			t.Fatal("a reader wrote to the packet")
		}
		var errh Header
		for _, e := range [][]byte{
			TooBig(make([]byte, MaxICMP), b, &h, TunnelMTU(start)), Unreachable(make([]byte, MaxICMP), b, &h),
		} {
			if e != nil && !Parse(e, &errh) {
				t.Fatalf("made a malformed ICMP error: % x", e)
			}
		}
		if NeedsOversize(&h, TunnelMTU(size)) {
			Oversize(slices.Clone(b), &h, TunnelMTU(size))
		}
		CompleteChecksum(slices.Clone(b), start, offset)
		for ecn := range uint8(4) {
			hc, bc := h, slices.Clone(b)
			MergeECN(bc, &hc, ecn)
			if h2 := (Header{}); !Parse(bc, &h2) || h2 != hc {
				t.Fatalf("MergeECN left %+v, reported %+v", h2, hc)
			}
		}
	})
}
