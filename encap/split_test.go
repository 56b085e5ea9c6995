package encap

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"testing"
)

// split returns the segments of pkt, whole.
func split(pkt []byte, super Super) ([][]byte, error) {
	var h Header
	if !Parse(pkt, &h) {
		return nil, errors.New("Parse refuses the super-packet")
	}
	var s Splitter
	if err := s.Reset(pkt, &h, super); err != nil {
		return nil, err
	}
	var out [][]byte
	for want := s.Remaining(); s.Remaining() > 0; want-- {
		if s.Remaining() != want {
			return nil, errors.New("Remaining does not count down by one")
		}
		hdr := make([]byte, MaxPacket)
		payload := s.Next(hdr)
		out = append(out, slices.Concat(hdr[:s.HeaderLen()], payload))
	}
	return out, nil
}

// super returns p as the kernel hands it to a device, in segments of size
// bytes, and where its transport header is.
func (p packet) super(size int) ([]byte, Super) {
	b := p.bytes()
	s := Super{Kind: SegTCP, Size: size, Partial: true, CsumOffset: 16}
	hl := 20 + len(p.tcpOpts)
	if p.proto == protoUDP {
		s.Kind, s.CsumOffset, hl = SegUDP, 6, 8
	}
	s.CsumStart = len(b) - len(p.payload) - hl
	s.HeaderLen = s.CsumStart + hl
	return refPartial(b, s.CsumStart, p.proto), s
}

func TestSegmentsEqualTheReference(t *testing.T) {
	for name, c := range map[string]struct {
		p    packet
		size int
		n    int // segments
	}{
		"odd size":                {tcp4(10_001), 1447, 7},
		"exact multiple":          {tcp4(10 * 1448), 1448, 10},
		"one byte over":           {tcp4(10*1448 + 1), 1448, 11},
		"one segment":             {tcp4(1000), 1448, 1},
		"one full segment":        {tcp4(1448), 1448, 1},
		"no payload":              {tcp4(0), 1448, 1},
		"segments of a byte":      {tcp4(300), 1, 300},
		"64 KiB":                  {tcp4(MaxPacket - 40), 1448, 46},
		"64 KiB of IPv6":          {tcp6(MaxPacket - 20), 1428, 46},
		"sequence number wraps":   {tcp4(5000).with(func(p *packet) { p.seq = math.MaxUint32 - 1500 }), 1000, 5},
		"identification wraps":    {tcp4(5000).with(func(p *packet) { p.id = 0xfffe }), 1000, 5},
		"all flags":               {tcp4(5000).with(func(p *packet) { p.flags = 0xd9 }), 1000, 5}, // CWR ECE ACK PSH FIN
		"flags of one segment":    {tcp4(500).with(func(p *packet) { p.flags = 0xd9 }), 1000, 1},
		"TCP timestamps":          {tcp4(5000).with(func(p *packet) { p.tcpOpts = timestamps }), 1436, 4},
		"longest headers":         {tcp4(5000).with(func(p *packet) { p.tcpOpts, p.ipOpts = make([]byte, 40), pattern(40) }), 1380, 4},
		"DSCP and ECN":            {tcp4(5000).with(func(p *packet) { p.tos = 0xba }), 1000, 5},
		"IPv6 class and label":    {tcp6(5000).with(func(p *packet) { p.tos, p.label = 0xb9, 0xabcde }), 1000, 5},
		"DF clear":                {tcp4(5000).with(func(p *packet) { p.frag = 0 }), 1000, 5},
		"IPv6 extension headers":  {tcp6(5000).with(func(p *packet) { p.ext = []extHeader{hopByHop, destOpts16} }), 1000, 5},
		"UDP over IPv4":           {udp4(10_000), 1472, 7},
		"UDP over IPv6":           {udp6(10_000), 1452, 7},
		"UDP, IPv6 extensions":    {udp6(5000).with(func(p *packet) { p.ext = []extHeader{destOpts16} }), 1000, 5},
		"UDP of equal bytes 0xff": {udp4(0).with(func(p *packet) { p.payload = filled(9000, 0xff) }), 1000, 9},
		"UDP sum of zero":         {udpSummingToZero(), 2, 1},
	} {
		pkt, super := c.p.super(c.size)
		orig := slices.Clone(pkt)
		got, err := split(pkt, super)
		if err != nil || len(got) != c.n {
			t.Errorf("%s: %d segments, %v; want %d", name, len(got), err, c.n)
			continue
		}
		want := [][]byte{c.p.bytes()}
		if len(c.p.payload) > 0 {
			want = refSplit(pkt, super.CsumStart, c.p.proto, c.size)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Errorf("%s: segment %d:\n got % x\nwant % x", name, i, got[i][:super.HeaderLen], want[i][:super.HeaderLen])
				break
			}
		}
		if !bytes.Equal(pkt, orig) {
			t.Errorf("%s: the super-packet was written to", name)
		}
	}
}

// The same again without the reference, as the RFCs word it.
func TestTCPFlagsOfSegments(t *testing.T) {
	p := tcp4(3000)
	p.flags = tcpACK | tcpPSH | tcpFIN | tcpCWR | 0x40 // ECE
	segs, err := split(p.super(1000))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []byte{
		tcpACK | 0x40 | tcpCWR, // CWR answers ECE once (RFC 3168 §6.1.2)
		tcpACK | 0x40,
		tcpACK | 0x40 | tcpPSH | tcpFIN, // these stand at the end of the data
	} {
		if got := segs[i][20+tcpFlags]; got != want {
			t.Errorf("segment %d has flags %#02x, want %#02x", i, got, want)
		}
	}
}

func TestSplitterNeedsNoPartialChecksum(t *testing.T) {
	p := tcp6(3000)
	b := p.bytes()
	got, err := split(b, Super{Kind: SegTCP, Size: 1000})
	if err != nil || !slices.EqualFunc(got, refSplit(b, 40, protoTCP, 1000), bytes.Equal) {
		t.Errorf("%d segments, %v", len(got), err)
	}
}

func TestSplitterIgnoresTheHeaderLengthGiven(t *testing.T) {
	pkt, super := tcp4(3000).super(1000)
	want, _ := split(pkt, super)
	for _, n := range []int{0, 1, 54, 1500, -1} {
		super.HeaderLen = n
		if got, err := split(pkt, super); err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("header length %d changes the segments: %v", n, err)
		}
	}
}

func TestSplitterRefusesContradictions(t *testing.T) {
	for name, c := range map[string]struct {
		p      packet
		change func(*Super)
	}{
		"one packet":                 {tcp4(9), func(s *Super) { s.Kind = Whole }},
		"an unknown kind":            {tcp4(9), func(s *Super) { s.Kind = numKinds }},
		"segments of no bytes":       {tcp4(9), func(s *Super) { s.Size = 0 }},
		"segments of less":           {tcp4(9), func(s *Super) { s.Size = -1 }},
		"segments beyond any packet": {tcp4(9), func(s *Super) { s.Size = math.MaxInt }},
		"UDP described as TCP":       {udp4(99), func(s *Super) { s.Kind, s.CsumOffset = SegTCP, 16 }},
		"TCP described as UDP":       {tcp4(99), func(s *Super) { s.Kind, s.CsumOffset = SegUDP, 6 }},
		"ICMP described as TCP":      {packet{proto: protoICMP, payload: pattern(99)}, func(s *Super) { s.CsumStart = 20 }},
		"checksum field of UDP":      {tcp4(99), func(s *Super) { s.CsumOffset = 6 }},
		"checksum inside IPv4":       {tcp4(99), func(s *Super) { s.CsumStart = 10 }},
		"checksum inside IPv6":       {tcp6(99), func(s *Super) { s.CsumStart = 20 }},
		"checksum behind IPv4 start": {udp4(99), func(s *Super) { s.CsumStart = 24 }},
		"checksum before the packet": {tcp6(99), func(s *Super) { s.CsumStart = -1 }},
		"checksum behind the packet": {tcp6(99), func(s *Super) { s.CsumStart = 60 + 99 }},
		"checksum far behind":        {tcp6(99), func(s *Super) { s.CsumStart = math.MaxInt }},
		"extensions without start":   {tcp6(99).with(func(p *packet) { p.ext = []extHeader{hopByHop} }), func(s *Super) { s.Partial = false }},
		"source route without sum":   {tcp4(99).with(func(p *packet) { p.ipOpts = sourceRoute }), func(s *Super) { s.Partial = false }},
		"an IPv4 fragment":           {tcp4(99).with(func(p *packet) { p.frag = 0x2000 }), func(*Super) {}},
		"an IPv6 fragment":           {tcp6(99).with(fragment6), func(*Super) {}},
	} {
		pkt, super := c.p.super(10)
		c.change(&super)
		if segs, err := split(pkt, super); !errors.Is(err, ErrMalformedSuper) {
			t.Errorf("%s: %d segments, %v; want ErrMalformedSuper", name, len(segs), err)
		}
	}
	for _, off := range []byte{0x00, 0x40, 0xf0} { // data offsets below 5, and beyond the packet
		pkt, super := tcp4(9).super(10)
		pkt[20+tcpDataOff] = off
		if _, err := split(pkt, super); !errors.Is(err, ErrMalformedSuper) {
			t.Errorf("data offset %#02x: %v", off, err)
		}
	}
}

// destOpts returns a destination options header of n bytes, a multiple of 8 and at
// most 2048 (RFC 8200 §4.6), filled with PadN options.
func destOpts(n int) extHeader {
	body := []byte{byte(n/8 - 1)}
	for left := n - 2; left > 0; {
		pad := min(left, 255)
		if left-pad == 1 {
			pad-- // a single byte would be Pad1
		}
		body = append(append(body, 1, byte(pad-2)), make([]byte, pad-2)...)
		left -= pad
	}
	return extHeader{60, body}
}

func TestHeadersOfAnyLengthAreCut(t *testing.T) {
	for _, ext := range [][]extHeader{
		{destOpts(192)}, {destOpts(256)}, {destOpts(2048)},
		{{0, destOpts(2048).body}, destOpts(2048), {43, append([]byte{255, 253, 0}, make([]byte, 2044)...)}, destOpts(2048)},
	} {
		for _, p := range []packet{tcp6(30_000), udp6(30_000)} {
			p.ext = ext
			pkt, super := p.super(1000)
			got, err := split(pkt, super)
			if err != nil || !slices.EqualFunc(got, refSplit(pkt, super.CsumStart, p.proto, 1000), bytes.Equal) {
				t.Errorf("%d bytes of headers: %d segments, %v", super.HeaderLen, len(got), err)
			}
		}
	}
}

// TestChecksumsCoverTheFinalDestination: the pseudo header of a packet on its way
// by other nodes has the last of them, not the destination of the IP header.
func TestChecksumsCoverTheFinalDestination(t *testing.T) {
	for name, p := range map[string]packet{
		"segment routing, TCP": tcp6(5000).with(func(p *packet) { p.ext = []extHeader{segmentRouting} }),
		"segment routing, UDP": udp6(5000).with(func(p *packet) { p.ext = []extHeader{segmentRouting} }),
		"behind other headers": tcp6(5000).with(func(p *packet) { p.ext = []extHeader{hopByHop, segmentRouting, destOpts16} }),
		"loose source route":   tcp4(5000).with(func(p *packet) { p.ipOpts = sourceRoute }),
		"strict source route":  udp4(5000).with(func(p *packet) { p.ipOpts = append([]byte{137}, sourceRoute[1:]...) }),
		"behind other options": tcp4(5000).with(func(p *packet) { p.ipOpts = slices.Concat([]byte{1, 148, 4, 0, 0, 1, 1, 1}, sourceRoute) }),
	} {
		for _, leave := range []bool{false, true} {
			pkt, super := p.super(1000)
			var h Header
			if !Parse(pkt, &h) {
				t.Fatal("malformed")
			}
			var s Splitter
			if err := s.Reset(pkt, &h, super); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if leave {
				s.LeavePartial() // which it must not here
			}
			for i, want := range refSplit(pkt, super.CsumStart, p.proto, 1000) {
				hdr := make([]byte, s.HeaderLen())
				got := slices.Concat(hdr, s.Next(hdr))
				copy(got, hdr)
				if !bytes.Equal(got, want) {
					t.Errorf("%s, to be left partial: %t: segment %d:\n got % x\nwant % x", name, leave, i, got[:super.HeaderLen], want[:super.HeaderLen])
					break
				}
			}
		}
	}
}

func TestSplitterIsReadyAgainAfterReset(t *testing.T) {
	var s Splitter
	var hdr [100]byte
	if s.Remaining() != 0 {
		t.Error("the zero Splitter has segments")
	}
	for _, p := range []packet{tcp4(3000), udp6(500), tcp6(2000), udp4(999)} {
		pkt, super := p.super(1000)
		var h Header
		Parse(pkt, &h)
		if err := s.Reset(pkt, &h, super); err != nil {
			t.Fatal(err)
		}
		payload := s.Next(hdr[:]) // one, the rest is left behind
		seg := slices.Concat(hdr[:s.HeaderLen()], payload)
		if want := refSplit(pkt, super.CsumStart, p.proto, 1000)[0]; !bytes.Equal(seg, want) {
			t.Errorf("after Reset: headers\n got % x\nwant % x", seg[:s.HeaderLen()], want[:s.HeaderLen()])
		}
		super.Size = 0
		if s.Reset(pkt, &h, super) == nil || s.Remaining() != 0 {
			t.Errorf("a refused packet leaves %d segments", s.Remaining())
		}
	}
}

func TestSplitterDoesNotAllocate(t *testing.T) {
	pkt, super := tcp4(MaxPacket - 40).super(1448)
	var h Header
	var s Splitter
	hdr := make([]byte, MaxPacket)
	if n := testing.AllocsPerRun(10, func() {
		Parse(pkt, &h)
		s.Reset(pkt, &h, super)
		for s.Remaining() > 0 {
			s.Next(hdr)
		}
	}); n != 0 {
		t.Errorf("%v allocations a super-packet", n)
	}
}
