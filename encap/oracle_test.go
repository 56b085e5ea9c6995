package encap

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// The oracle: packets built, cut and verified a second time, in the plainest
// way, from the RFCs and without the package's own code.

// packet describes a test packet. Lengths and checksums are not given: bytes
// fills them in.
type packet struct {
	v6       bool
	src, dst uint8 // last byte of the addresses
	tos, ttl uint8
	label    uint32 // IPv6 flow label
	id       uint16 // IPv4 only, like frag and ipOpts
	frag     uint16 // DF, MF and fragment offset
	ipOpts   []byte
	ext      []extHeader // IPv6 extension headers

	proto        uint8
	sport, dport uint16
	seq, ack     uint32
	flags        uint16 // AE (RFC 9768) is bit 8
	window       uint16
	urgent       uint16
	tcpOpts      []byte
	noChecksum   bool // UDP's "none"
	payload      []byte
}

// extHeader is an IPv6 extension header: body is what follows the next-header
// byte.
type extHeader struct {
	typ  uint8
	body []byte
}

var (
	hopByHop   = extHeader{0, []byte{0, 1, 4, 0, 0, 0, 0}}                    // RFC 8200 §4.3, one PadN
	destOpts16 = extHeader{60, append([]byte{1, 1, 12}, make([]byte, 12)...)} // RFC 8200 §4.6
	authHeader = extHeader{51, append([]byte{4}, make([]byte, 22)...)}        // RFC 4302 §2
	// segmentRouting leads by way of the header's destination to host 9
	// (RFC 8754 §2): one segment is left of two, the last comes first.
	segmentRouting = extHeader{43, slices.Concat([]byte{4, 4, 1, 1, 0, 0, 0}, packet{v6: true}.addr(9), packet{v6: true}.addr(2))}
	// sourceRoute does the same (RFC 791 §3.1): one address, not reached yet.
	sourceRoute = slices.Concat([]byte{131, 7, 4}, packet{}.addr(9), []byte{0})
	timestamps  = []byte{1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 2, 0} // RFC 7323 §3.2
)

func tcp4(n int) packet {
	return packet{
		src: 1, dst: 2, ttl: 63, frag: ipv4DontFragment, id: 0x1234, proto: protoTCP,
		sport: 40000, dport: 5201, seq: 1000, ack: 77, flags: tcpACK, window: 501, payload: pattern(n),
	}
}

func udp4(n int) packet {
	p := tcp4(n)
	p.proto = protoUDP
	return p
}

func tcp6(n int) packet { return tcp4(n).with(func(p *packet) { p.v6 = true }) }
func udp6(n int) packet { return udp4(n).with(func(p *packet) { p.v6 = true }) }

// with returns a changed copy of p.
func (p packet) with(changes ...func(*packet)) packet {
	for _, change := range changes {
		change(&p)
	}
	return p
}

// pattern returns n bytes that differ from their neighbours.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// addr returns the address of host n in the family of p.
func (p packet) addr(n uint8) []byte {
	if p.v6 {
		return []byte{0xfd, 0, 0, 0, 0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, n}
	}
	return []byte{10, 5, n, n}
}

func (p packet) bytes() []byte {
	be := binary.BigEndian
	var trans []byte
	switch p.proto {
	case protoTCP:
		trans = be.AppendUint16(trans, p.sport)
		trans = be.AppendUint16(trans, p.dport)
		trans = be.AppendUint32(trans, p.seq)
		trans = be.AppendUint32(trans, p.ack)
		trans = append(trans, byte(5+len(p.tcpOpts)/4)<<4|byte(p.flags>>8), byte(p.flags))
		trans = be.AppendUint16(trans, p.window)
		trans = append(trans, 0, 0)
		trans = be.AppendUint16(trans, p.urgent)
		trans = append(trans, p.tcpOpts...)
	case protoUDP:
		trans = be.AppendUint16(trans, p.sport)
		trans = be.AppendUint16(trans, p.dport)
		trans = be.AppendUint16(trans, uint16(8+len(p.payload)))
		trans = append(trans, 0, 0)
	}
	trans = append(trans, p.payload...)

	var ip []byte
	if p.v6 {
		next, chain := p.proto, []byte(nil)
		for _, e := range slices.Backward(p.ext) {
			chain = append(append([]byte{next}, e.body...), chain...)
			next = e.typ
		}
		ip = be.AppendUint32(ip, 6<<28|uint32(p.tos)<<20|p.label)
		ip = be.AppendUint16(ip, uint16(len(chain)+len(trans)))
		ip = append(ip, next, p.ttl)
		ip = append(ip, p.addr(p.src)...)
		ip = append(ip, p.addr(p.dst)...)
		ip = append(ip, chain...)
	} else {
		ip = append(ip, 0x45+byte(len(p.ipOpts)/4), p.tos)
		ip = be.AppendUint16(ip, uint16(20+len(p.ipOpts)+len(trans)))
		ip = be.AppendUint16(ip, p.id)
		ip = be.AppendUint16(ip, p.frag)
		ip = append(ip, p.ttl, p.proto, 0, 0)
		ip = append(ip, p.addr(p.src)...)
		ip = append(ip, p.addr(p.dst)...)
		ip = append(ip, p.ipOpts...)
	}
	b := append(ip, trans...)
	refChecksums(b, len(ip), p.proto)
	if p.noChecksum {
		be.PutUint16(b[len(ip)+6:], 0)
	}
	return b
}

// refSum is the ones' complement sum of RFC 1071, a byte at a time.
func refSum(parts ...[]byte) uint16 {
	var s uint32
	for i, x := range slices.Concat(parts...) {
		if i%2 == 0 {
			s += uint32(x) << 8
		} else {
			s += uint32(x)
		}
		if s > 0xffff {
			s -= 0xffff // the carry out of the top comes in at the bottom
		}
	}
	return uint16(s)
}

// refPseudo returns the pseudo header of the packet b with n bytes behind its
// IP headers.
func refPseudo(b []byte, proto uint8, n int) []byte {
	if b[0]>>4 == 4 {
		return slices.Concat(b[12:16], refFinal(b, len(b)-n), []byte{0, proto, byte(n >> 8), byte(n)})
	}
	return slices.Concat(b[8:24], refFinal(b, len(b)-n), []byte{0, byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, proto})
}

// refFinal returns the final destination of the packet b with ipLen bytes of IP headers:
// that of the IP header, unless a segment routing header or a source route has one that
// is still ahead.
func refFinal(b []byte, ipLen int) []byte {
	if b[0]>>4 == 6 {
		next, at := b[6], 40
		for slices.Contains([]byte{0, 43, 60}, next) && at+8 <= len(b) {
			if next == 43 && b[at+2] == 4 && b[at+3] > 0 && at+24 <= ipLen {
				return b[at+8:][:16]
			}
			next, at = b[at], at+(int(b[at+1])+1)*8
		}
		return b[24:40]
	}
	for opts := b[20 : int(b[0]&15)*4]; len(opts) > 0 && opts[0] != 0; {
		switch {
		case opts[0] == 1:
			opts = opts[1:]
			continue
		case len(opts) < 3 || opts[1] < 2 || int(opts[1]) > len(opts):
			return b[16:20]
		case (opts[0] == 131 || opts[0] == 137) && opts[1] >= 7 && opts[2] < opts[1]:
			return opts[opts[1]-4:][:4]
		}
		opts = opts[opts[1]:]
	}
	return b[16:20]
}

// refChecksums fills in the checksums of b whose transport header is at ipLen.
func refChecksums(b []byte, ipLen int, proto uint8) {
	put := func(at int, sum uint16) { b[at], b[at+1] = byte(^sum>>8), byte(^sum) }
	if b[0]>>4 == 4 {
		b[10], b[11] = 0, 0
		put(10, refSum(b[:ipLen]))
	}
	var at int
	switch proto {
	case protoTCP:
		at = ipLen + 16
	case protoUDP:
		at = ipLen + 6
	default:
		return
	}
	b[at], b[at+1] = 0, 0
	put(at, refSum(refPseudo(b, proto, len(b)-ipLen), b[ipLen:]))
	if proto == protoUDP && b[at] == 0 && b[at+1] == 0 {
		b[at], b[at+1] = 0xff, 0xff
	}
}

// refVerify reports what is wrong with the lengths and checksums of b.
func refVerify(b []byte, ipLen int, proto uint8) error {
	if b[0]>>4 == 4 {
		if n := int(b[2])<<8 | int(b[3]); n != len(b) {
			return fmt.Errorf("total length %d, packet has %d", n, len(b))
		}
		if refSum(b[:ipLen]) != 0xffff {
			return fmt.Errorf("IPv4 header checksum wrong")
		}
	} else if n := int(b[4])<<8 | int(b[5]); n != len(b)-40 {
		return fmt.Errorf("payload length %d, packet has %d", n, len(b)-40)
	}
	if proto == protoUDP {
		if n := int(b[ipLen+4])<<8 | int(b[ipLen+5]); n != len(b)-ipLen {
			return fmt.Errorf("UDP length %d, packet has %d", n, len(b)-ipLen)
		}
	}
	if refSum(refPseudo(b, proto, len(b)-ipLen), b[ipLen:]) != 0xffff {
		return fmt.Errorf("checksum of protocol %d wrong", proto)
	}
	return nil
}

// refPartial puts the checksum of the TCP or UDP packet b into the state in
// which the kernel leaves it to a device: the sum of the pseudo header.
func refPartial(b []byte, ipLen int, proto uint8) []byte {
	at := ipLen + 16
	if proto == protoUDP {
		at = ipLen + 6
	}
	binary.BigEndian.PutUint16(b[at:], refSum(refPseudo(b, proto, len(b)-ipLen)))
	return b
}

// refSplit cuts a super-packet as tcp_gso_segment and __udp_gso_segment of
// Linux do.
func refSplit(super []byte, ipLen int, proto uint8, size int) [][]byte {
	be := binary.BigEndian
	hl := ipLen + 8
	if proto == protoTCP {
		hl = ipLen + int(super[ipLen+12]>>4)*4
	}
	var out [][]byte
	chunks := slices.Collect(slices.Chunk(super[hl:], size))
	for i, chunk := range chunks {
		b := slices.Concat(super[:hl], chunk)
		if b[0]>>4 == 4 {
			be.PutUint16(b[2:], uint16(len(b)))
			be.PutUint16(b[4:], be.Uint16(super[4:])+uint16(i))
		} else {
			be.PutUint16(b[4:], uint16(len(b)-40))
		}
		if proto == protoTCP {
			be.PutUint32(b[ipLen+4:], be.Uint32(super[ipLen+4:])+uint32(i*size))
			if i > 0 {
				b[ipLen+13] &^= 0x80 // CWR
			}
			if i < len(chunks)-1 {
				b[ipLen+13] &^= 0x08 | 0x01 // PSH, FIN
			}
		} else {
			be.PutUint16(b[ipLen+4:], uint16(len(b)-ipLen))
		}
		refChecksums(b, ipLen, proto)
		out = append(out, b)
	}
	return out
}

// refDevice is what the kernel behind a TUN device makes of a write: it cuts
// super-packets, after the checks of virtio_net_hdr_to_skb.
func refDevice(wire []byte, s Super) ([][]byte, error) {
	if s.Kind == Whole {
		if !s.Partial {
			return [][]byte{wire}, nil
		}
		proto := protoOf(wire)
		if want := refPartial(slices.Clone(wire), s.CsumStart, proto); !bytes.Equal(wire, want) {
			return nil, fmt.Errorf("a packet whose checksum is to be finished does not hold the pseudo header's")
		}
		wire = slices.Clone(wire)
		refChecksums(wire, s.CsumStart, proto)
		return [][]byte{wire}, nil
	}
	proto, at := uint8(protoTCP), 16
	if s.Kind == SegUDP {
		proto, at = protoUDP, 6
	}
	switch n := len(wire) - s.HeaderLen; {
	case !s.Partial || s.CsumOffset != at:
		return nil, fmt.Errorf("a super-packet without its partial checksum: %+v", s)
	case len(wire) > MaxPacket:
		return nil, fmt.Errorf("a super-packet of %d bytes", len(wire))
	case n <= s.Size:
		return nil, fmt.Errorf("%d payload bytes are no train of %d", n, s.Size)
	case proto == protoUDP && n > 64*s.Size:
		return nil, fmt.Errorf("a UDP train of more than 64 datagrams")
	}
	if want := refPartial(slices.Clone(wire), s.CsumStart, proto); !bytes.Equal(wire, want) {
		return nil, fmt.Errorf("checksum field holds % x, pseudo header sums to % x",
			wire[s.CsumStart+at:][:2], want[s.CsumStart+at:][:2])
	}
	out := refSplit(wire, s.CsumStart, proto, s.Size)
	for i, b := range out {
		if err := refVerify(b, s.CsumStart, proto); err != nil {
			return nil, fmt.Errorf("segment %d: %w", i, err)
		}
	}
	return out, nil
}
