package fastpath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

// The packets of the tests, and what the kernel makes of them, a second time
// and in the plainest way.

const tcpACK, tcpPSH = 0x10, 0x08

// segment is a TCP segment or, without flags, a UDP datagram.
type segment struct {
	src, dst string
	flags    uint8
	tos      uint8
	df       bool
	seq      uint32
	id       uint16
	payload  []byte
}

// pattern returns n bytes that differ from their neighbours.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// bytes is the packet with its lengths and checksums.
func (s segment) bytes() []byte {
	be := binary.BigEndian
	src, dst := netip.MustParseAddr(s.src), netip.MustParseAddr(s.dst)
	proto, trans := byte(unix.IPPROTO_UDP), make([]byte, 8)
	if s.flags != 0 {
		proto, trans = unix.IPPROTO_TCP, make([]byte, 20)
		be.PutUint32(trans[4:], s.seq)
		trans[12], trans[13], trans[14] = 5<<4, s.flags, 1
	}
	trans[0], trans[2] = 0x9c, 0x9d // ports
	trans = append(trans, s.payload...)
	var ip []byte
	if src.Is6() {
		ip = []byte{0x60 | s.tos>>4, s.tos << 4, 0, 0, 0, 0, proto, 64}
	} else {
		ip = []byte{0x45, s.tos, 0, 0, byte(s.id >> 8), byte(s.id), 0, 0, 64, proto, 0, 0}
		if s.df {
			ip[6] = 0x40
		}
	}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	b := append(ip, trans...)
	finish(b, len(ip))
	return b
}

// transport returns where the checksum of a TCP or UDP packet is.
func checksumAt(b []byte, ipLen int) int {
	if protocol(b) == unix.IPPROTO_UDP {
		return ipLen + 6
	}
	return ipLen + 16
}

func protocol(b []byte) byte {
	if b[0]>>4 == 6 {
		return b[6]
	}
	return b[9]
}

// pseudo is the pseudo header of a packet.
func pseudo(b []byte, ipLen int) []byte {
	addrs := b[12:20]
	if b[0]>>4 == 6 {
		addrs = b[8:40]
	}
	return append(binary.BigEndian.AppendUint32(slices.Clone(addrs), uint32(len(b)-ipLen)), 0, protocol(b))
}

// finish fills in the lengths and checksums of a TCP or UDP packet.
func finish(b []byte, ipLen int) {
	be := binary.BigEndian
	if b[0]>>4 == 6 {
		be.PutUint16(b[4:], uint16(len(b)-ipLen))
	} else {
		be.PutUint16(b[2:], uint16(len(b)))
		be.PutUint16(b[10:], 0)
		be.PutUint16(b[10:], ^sum(b[:ipLen]))
	}
	if protocol(b) == unix.IPPROTO_UDP {
		be.PutUint16(b[ipLen+4:], uint16(len(b)-ipLen))
	}
	at := checksumAt(b, ipLen)
	be.PutUint16(b[at:], 0)
	c := ^sum(pseudo(b, ipLen), b[ipLen:])
	if c == 0 && protocol(b) == unix.IPPROTO_UDP {
		c = 0xffff
	}
	be.PutUint16(b[at:], c)
}

// sum is the ones' complement sum of RFC 1071; all parts but the last have an
// even length.
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, p := range parts {
		for i, x := range p {
			s += uint32(x) << (8 * (1 - i%2))
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

// verify reports what is wrong with the lengths and checksums of a TCP or UDP
// packet without IP options or extension headers.
func verify(b []byte) error {
	ipLen := 20
	if b[0]>>4 == 6 {
		ipLen = 40
	}
	want := slices.Clone(b)
	finish(want, ipLen)
	if !slices.Equal(b, want) {
		return fmt.Errorf("lengths or checksums are wrong:\n% x\n% x", b[:min(len(b), 60)], want[:min(len(b), 60)])
	}
	return nil
}

// superPacket is what the kernel hands over for a train of segments like s, of
// size payload bytes each: a virtio-net header, and a packet whose checksum is
// the pseudo header's.
func superPacket(s segment, size int) []byte {
	pkt := s.bytes()
	ipLen, hl := 20, 20+8
	if pkt[0]>>4 == 6 {
		ipLen, hl = 40, 40+8
	}
	v := tun.Header{Flags: tun.FlagNeedsCsum, GSOType: tun.GSOUDPL4, GSOSize: uint16(size), CsumStart: uint16(ipLen)}
	if s.flags != 0 {
		hl += 12
		v.GSOType = tun.GSOTCPv4
		if ipLen == 40 {
			v.GSOType = tun.GSOTCPv6
		}
	}
	v.HdrLen = uint16(hl)
	at := checksumAt(pkt, ipLen)
	v.CsumOffset = uint16(at - ipLen)
	binary.BigEndian.PutUint16(pkt[at:], sum(pseudo(pkt, ipLen)))
	return read(v, pkt)
}

// read is what Queue.Read delivers for a packet.
func read(v tun.Header, pkt []byte) []byte {
	b := make([]byte, tun.HeaderLen, tun.HeaderLen+len(pkt))
	v.Encode(b)
	return append(b, pkt...)
}

// cut is what the kernel makes of a write to a TUN device: it refuses what
// virtio_net_hdr_to_skb refuses, and cuts super-packets as tcp_gso_segment and
// __udp_gso_segment do.
func cut(b []byte) ([][]byte, error) {
	var v tun.Header
	v.Decode(b)
	pkt := b[tun.HeaderLen:]
	if v.GSOType == tun.GSONone {
		if v.Flags == 0 {
			return [][]byte{pkt}, nil
		}
		at := checksumAt(pkt, int(v.CsumStart))
		if binary.BigEndian.Uint16(pkt[at:]) != sum(pseudo(pkt, int(v.CsumStart))) {
			return nil, fmt.Errorf("a packet whose checksum is to be finished does not hold the pseudo header's: %+v", v)
		}
		pkt = slices.Clone(pkt)
		finish(pkt, int(v.CsumStart))
		return [][]byte{pkt}, nil
	}
	ipLen := int(v.CsumStart)
	hl := ipLen + 8
	if v.GSOType != tun.GSOUDPL4 {
		hl = ipLen + int(pkt[ipLen+12]>>4)*4
	}
	proto := map[uint8]byte{tun.GSOTCPv4: 6, tun.GSOTCPv6: 6, tun.GSOUDPL4: 17}[v.GSOType]
	at := checksumAt(pkt, ipLen)
	switch {
	case v.Flags != tun.FlagNeedsCsum || int(v.CsumOffset) != at-ipLen:
		return nil, fmt.Errorf("a super-packet without its partial checksum: %+v", v)
	case protocol(pkt) != proto:
		return nil, fmt.Errorf("GSO type %d for protocol %d", v.GSOType, protocol(pkt))
	case v.GSOSize == 0 || len(pkt)-hl <= int(v.GSOSize):
		return nil, fmt.Errorf("%d payload bytes are no train of %d", len(pkt)-hl, v.GSOSize)
	case proto == unix.IPPROTO_UDP && len(pkt)-hl > 64*int(v.GSOSize):
		return nil, fmt.Errorf("a UDP train of more than 64 datagrams")
	case int(v.HdrLen) != hl:
		return nil, fmt.Errorf("headers have %d bytes, but HdrLen is %d", hl, v.HdrLen)
	case binary.BigEndian.Uint16(pkt[at:]) != sum(pseudo(pkt, ipLen)):
		return nil, fmt.Errorf("checksum field is not the pseudo header's")
	}
	var out [][]byte
	chunks := slices.Collect(slices.Chunk(pkt[hl:], int(v.GSOSize)))
	for i, chunk := range chunks {
		p := slices.Concat(pkt[:hl], chunk)
		if p[0]>>4 == 4 {
			binary.BigEndian.PutUint16(p[4:], binary.BigEndian.Uint16(pkt[4:])+uint16(i))
		}
		if proto == unix.IPPROTO_TCP {
			binary.BigEndian.PutUint32(p[ipLen+4:], binary.BigEndian.Uint32(pkt[ipLen+4:])+uint32(i)*uint32(v.GSOSize))
			if i < len(chunks)-1 {
				p[ipLen+13] &^= tcpPSH
			}
		}
		finish(p, ipLen)
		out = append(out, p)
	}
	return out, nil
}
