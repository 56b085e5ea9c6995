package encap

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"
)

// partial returns p with its checksum left to be completed, and its description.
func (p packet) partial(t testing.TB) ([]byte, Header) {
	t.Helper()
	var h Header
	b := p.bytes()
	if !Parse(b, &h) {
		t.Fatalf("malformed: % x", b[:min(len(b), 60)])
	}
	return refPartial(b, h.IPLen, p.proto), h
}

func TestAPartialChecksumIsRecognised(t *testing.T) {
	for _, p := range flows {
		b, h := p.partial(t)
		if !PartialChecksum(b, &h) {
			t.Errorf("%v: partial checksum not recognised", p)
		}
		if whole := p.bytes(); PartialChecksum(whole, &h) {
			t.Errorf("%v: complete checksum treated as partial", p)
		}
		for at := range b {
			damaged := set8(b, at, b[at]^0x10)
			if at >= len(b)-len(p.payload) {
				break // the field says nothing of the payload
			}
			var dh Header
			if Parse(damaged, &dh) && dh.Proto == h.Proto && !dh.Fragment && PartialChecksum(damaged, &dh) && inPseudo(at, &h) {
				t.Errorf("%v: treated as partial although byte %d of the pseudo header differs", p, at)
			}
		}
	}
}

// inPseudo reports whether byte at of a packet is an address or the checksum.
func inPseudo(at int, h *Header) bool {
	addrs := 12
	if h.Version == 6 {
		addrs = 8
	}
	return at >= addrs && at < h.IPLen || at == h.IPLen+ChecksumOffset(h.Proto)
}

func TestWhatHasNoChecksumIsNotPartial(t *testing.T) {
	for name, p := range map[string]packet{
		"fragment":       tcp4(100).with(func(p *packet) { p.frag = 0x2000 }),
		"SCTP":           tcp4(100).with(func(p *packet) { p.proto = 132 }),
		"no checksum":    udp4(100).with(func(p *packet) { p.noChecksum = true }),
		"hop by hop":     tcp6(100).with(func(p *packet) { p.ext = []extHeader{hopByHop} }),
		"a later part":   udp4(100).with(func(p *packet) { p.frag = 7 }),
		"source route":   tcp4(100).with(func(p *packet) { p.ipOpts = sourceRoute }),
		"IPv6 fragments": tcp6(100).with(func(p *packet) { p.ext = []extHeader{{protoIPv6Frag, []byte{0, 0, 1, 0, 0, 0, 9}}} }),
	} {
		var h Header
		b := p.bytes()
		if !Parse(b, &h) {
			t.Fatal(name)
		}
		if PartialChecksum(b, &h) {
			t.Errorf("%s: treated as partial", name)
		}
		if at := h.IPLen + ChecksumOffset(h.Proto); at+2 <= len(b) && !p.noChecksum { // what its pseudo header would be
			binary.BigEndian.PutUint16(b[at:], fold(pseudoSum(b, h.Proto, len(b)-h.IPLen)))
			if PartialChecksum(b, &h) {
				t.Errorf("%s: treated as partial, since the checksum happens to be the sum of the pseudo header", name)
			}
		}
	}
}

// TestDatagramShorterThanItsPacketIsNotPartial: a correct checksum may by chance
// have the value of the pseudo header with the length of the IP payload. The bytes
// behind the datagram (RFC 9868) are not covered by it.
func TestDatagramShorterThanItsPacketIsNotPartial(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		found := false
		for try := range 1 << 17 {
			p := udp4(4).with(func(p *packet) { p.v6 = v6 })
			binary.BigEndian.PutUint32(p.payload, uint32(try)*0x9e3779b1)
			b := p.bytes()
			ipLen := len(b) - 12
			b = append(b, 'o', 'p', 't', 's')
			if v6 {
				binary.BigEndian.PutUint16(b[ipv6PayloadLen:], uint16(len(b)-ipLen))
			} else {
				binary.BigEndian.PutUint16(b[ipv4TotalLen:], uint16(len(b)))
			}
			if binary.BigEndian.Uint16(b[ipLen+udpChecksum:]) != refSum(refPseudo(b, protoUDP, len(b)-ipLen)) {
				continue
			}
			found = true
			var h Header
			if !Parse(b, &h) || PartialChecksum(b, &h) {
				t.Errorf("IPv6 %t: complete checksum of % x treated as partial", v6, b)
			}
			break
		}
		if !found {
			t.Errorf("IPv6 %t: no such datagram", v6)
		}
	}
}

func TestSegmentsLeftPartialAreTheReferencesButForTheChecksum(t *testing.T) {
	for _, p := range flows {
		p.payload = pattern(10_001)
		pkt, super := p.super(1447)
		var h Header
		if !Parse(pkt, &h) {
			t.Fatal("malformed")
		}
		var s Splitter
		if err := s.Reset(pkt, &h, super); err != nil {
			t.Fatal(err)
		}
		s.LeavePartial()
		for i, want := range refSplit(pkt, super.CsumStart, p.proto, super.Size) {
			hdr := make([]byte, 200)
			payload := s.Next(hdr)
			got := slices.Concat(hdr[:s.HeaderLen()], payload)
			if want = refPartial(want, super.CsumStart, p.proto); !bytes.Equal(got, want) {
				t.Fatalf("segment %d:\n% x, want\n% x", i, got[:60], want[:60])
			}
		}
		// The next super-packet is not affected.
		if segs, err := split(pkt, super); err != nil || refVerify(segs[0], super.CsumStart, p.proto) != nil {
			t.Errorf("after Reset: %v", err)
		}
	}
}

func TestBehindExtensionHeadersChecksumsAreComplete(t *testing.T) {
	p := tcp6(5000).with(func(p *packet) { p.ext = []extHeader{hopByHop} })
	pkt, super := p.super(1400)
	var h Header
	if !Parse(pkt, &h) {
		t.Fatal("malformed")
	}
	var s Splitter
	if err := s.Reset(pkt, &h, super); err != nil {
		t.Fatal(err)
	}
	s.LeavePartial()
	for s.Remaining() > 0 {
		hdr := make([]byte, 200)
		payload := s.Next(hdr)
		if err := refVerify(slices.Concat(hdr[:s.HeaderLen()], payload), super.CsumStart, protoTCP); err != nil {
			t.Fatal(err)
		}
	}
}

// joined returns what the device makes of the packets, of which those with
// partial set are left to be finished, and how many are in each run.
func joined(t *testing.T, c *Coalescer, pkts []packet, partial ...bool) ([][]byte, []int) {
	t.Helper()
	for i, p := range pkts {
		if partial[i%len(partial)] {
			b, h := p.partial(t)
			c.AddPartial(b, &h)
		} else {
			add(t, c, p.bytes())
		}
	}
	return delivered(t, c)
}

func TestPartialPacketsAreJoinedAndFinished(t *testing.T) {
	for _, p := range flows {
		pkts := p.train(10)
		got, sizes := joined(t, NewCoalescer(16, true, true), pkts, true)
		if !slices.Equal(sizes, []int{10}) {
			t.Errorf("%v: runs of %v packets", p, sizes)
		}
		for i := range pkts {
			if !bytes.Equal(got[i], pkts[i].bytes()) {
				t.Errorf("%v: packet %d is not what was sent", p, i)
			}
		}
	}
}

func TestPartialPacketsThatAreNotJoinedAreFinished(t *testing.T) {
	for name, p := range map[string]packet{
		"SYN": tcp4(0).with(func(p *packet) { p.flags = tcpSYN }), "FIN": tcp6(50).with(func(p *packet) { p.flags = tcpFIN | tcpACK }),
		"acknowledgement": tcp4(0), "one datagram": udp6(1), "IP options": tcp4(9).with(func(p *packet) { p.ipOpts = []byte{1, 1, 1, 0} }),
	} {
		for _, on := range []bool{true, false} { // device takes super-packets
			got, _ := joined(t, NewCoalescer(4, on, on), []packet{p}, true)
			if !bytes.Equal(got[0], p.bytes()) {
				t.Errorf("%s: not what was sent", name)
			}
		}
	}
}

func TestPartialAndCompletePacketsAreNotJoined(t *testing.T) {
	for _, p := range flows {
		pkts := p.train(6)
		got, sizes := joined(t, NewCoalescer(16, true, true), pkts, true, true, false, false, true, true)
		if !slices.Equal(sizes, []int{2, 2, 2}) {
			t.Errorf("%v: runs of %v packets", p, sizes)
		}
		for i := range pkts {
			if !bytes.Equal(got[i], pkts[i].bytes()) {
				t.Errorf("%v: packet %d is not what was sent", p, i)
			}
		}
	}
}

// TestDamagedIPHeadersOfPartialPacketsAreNotRepaired: the run's header is made
// again, with a good checksum.
func TestDamagedIPHeadersOfPartialPacketsAreNotRepaired(t *testing.T) {
	for bad := range 3 {
		c := NewCoalescer(8, true, true)
		for i, p := range tcp4(100).train(3) {
			b, h := p.partial(t)
			if i == bad {
				b[ipv4Checksum] ^= 1
			}
			c.AddPartial(b, &h)
		}
		runs, seen := c.Runs(), false
		for i := range runs {
			wire := slices.Concat(c.Vectors(&runs[i], nil)...)
			seen = seen || fold(sum(wire[:20], 0)) != 0xffff
		}
		if !seen {
			t.Errorf("packet %d: its header checksum was corrected", bad)
		}
	}
}

// FuzzPartial: a super-packet that is cut with checksums left, carried and joined
// again is the same.
func FuzzPartial(f *testing.F) {
	for kind := range uint8(8) {
		f.Add(kind, uint16(20_000), uint16(1448), uint32(0xfffffff0))
		f.Add(kind, uint16(2896), uint16(1448), uint32(0))
	}
	f.Fuzz(func(t *testing.T, kind uint8, n, size uint16, seq uint32) {
		p, limit := tcp4(0), maxRunSegments
		if kind&1 != 0 {
			p.proto, limit = protoUDP, maxUDPSegments
		}
		if kind&4 != 0 {
			p.tcpOpts = timestamps
		}
		p.v6, p.seq = kind&2 != 0, seq
		p.payload = pattern(int(min(n, MaxPacket-72)))
		if size == 0 || len(p.payload) == 0 || len(p.payload) > int(size)*limit {
			return
		}
		pkt, super := p.super(int(size))
		var h Header
		var s Splitter
		if !Parse(pkt, &h) || s.Reset(pkt, &h, super) != nil {
			t.Fatal("super-packet refused")
		}
		s.LeavePartial()
		co := NewCoalescer(s.Remaining(), true, true)
		for s.Remaining() > 0 {
			hdr := make([]byte, 200)
			payload := s.Next(hdr)
			seg := slices.Concat(hdr[:s.HeaderLen()], payload)
			var sh Header
			if !Parse(seg, &sh) || !PartialChecksum(seg, &sh) {
				t.Fatalf("segment not recognised: % x", seg[:min(len(seg), 60)])
			}
			co.AddPartial(seg, &sh)
		}
		runs := co.Runs()
		if len(runs) == 1 && runs[0].Segments == 1 {
			super = Super{Partial: true, CsumStart: super.CsumStart, CsumOffset: super.CsumOffset}
		}
		if len(runs) != 1 || runs[0].Super != super || !bytes.Equal(slices.Concat(co.Vectors(&runs[0], nil)...), pkt) {
			t.Fatalf("%+v becomes %d runs, the first %+v", super, len(runs), runs[0].Super)
		}
	})
}
