package encap

import (
	"encoding/binary"
	"net/netip"
)

// Sizes and offsets of the fixed headers, in bytes.
const (
	ipv4HeaderLen = 20 // RFC 791 §3.1, without options
	ipv6HeaderLen = 40 // RFC 8200 §3
	tcpHeaderLen  = 20 // RFC 9293 §3.1, without options
	udpHeaderLen  = 8  // RFC 768

	ipv4TOS      = 1
	ipv4TotalLen = 2
	ipv4ID       = 4
	ipv4Frag     = 6
	ipv4TTL      = 8
	ipv4Proto    = 9
	ipv4Checksum = 10
	ipv4Src      = 12
	ipv4Dst      = 16

	ipv6PayloadLen = 4
	ipv6NextHeader = 6
	ipv6HopLimit   = 7
	ipv6Src        = 8
	ipv6Dst        = 24
	ipv6ExtMinLen  = 8 // of an extension header

	tcpSeq      = 4
	tcpAck      = 8
	tcpDataOff  = 12
	tcpFlags    = 13
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18

	udpLength   = 4
	udpChecksum = 6
)

const (
	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	ipv4OffsetMask    = 0x1fff
)

// IPv4 options, RFC 791 §3.1.
const (
	ipv4OptEnd  = 0
	ipv4OptNop  = 1
	ipv4OptLSRR = 131 // loose source and record route
	ipv4OptSSRR = 137 // strict source and record route
)

// IP protocol numbers that this package treats specially.
const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoIPv6Frag = 44
	protoAuth     = 51
	protoICMPv6   = 58
	protoDestOpts = 60
)

// MaxPacket is the largest inner packet in bytes: the most that the 16-bit length
// field of IPv4 can hold.
const MaxPacket = 65535

// Header holds the fields of a packet's IP header that the data plane uses, the
// same for IPv4 and IPv6.
type Header struct {
	Src, Dst netip.Addr
	Len      int   // of the packet in bytes, IP header included
	IPLen    int   // of the IP header in bytes: with options for IPv4, 40 for IPv6
	Version  uint8 // 4 or 6
	Proto    uint8 // IPv4 protocol or first next-header of IPv6
	TOS      uint8 // DSCP and ECN: IPv4 TOS, IPv6 traffic class
	Fragment bool  // part of a fragmented packet: ports may be missing
}

// Parse reads the IP header of b into h. It reports whether b holds exactly
// one well-formed IPv4 or IPv6 packet: the version is known, the header is
// whole, and the length field is len(b). Header checksums are not
// verified: the kernel does that when the packet is written to a TUN device.
//
// h is overwritten even if Parse returns false.
func Parse(b []byte, h *Header) bool {
	if len(b) < ipv4HeaderLen {
		return false
	}
	switch b[0] >> 4 {
	case 4:
		h.Version = 4
		h.IPLen = int(b[0]&0x0f) * 4
		h.Len = int(binary.BigEndian.Uint16(b[ipv4TotalLen:]))
		if h.IPLen < ipv4HeaderLen || h.IPLen > len(b) || h.Len != len(b) {
			return false
		}
		h.TOS = b[ipv4TOS]
		h.Proto = b[ipv4Proto]
		h.Fragment = binary.BigEndian.Uint16(b[ipv4Frag:])&(ipv4MoreFragments|ipv4OffsetMask) != 0
		h.Src = netip.AddrFrom4([4]byte(b[ipv4Src:]))
		h.Dst = netip.AddrFrom4([4]byte(b[ipv4Dst:]))
		return true
	case 6:
		if len(b) < ipv6HeaderLen {
			return false
		}
		h.Version = 6
		h.IPLen = ipv6HeaderLen
		h.Len = ipv6HeaderLen + int(binary.BigEndian.Uint16(b[ipv6PayloadLen:]))
		if h.Len != len(b) {
			return false
		}
		h.TOS = b[0]<<4 | b[1]>>4
		h.Proto = b[ipv6NextHeader]
		h.Fragment = h.Proto == protoIPv6Frag
		h.Src = netip.AddrFrom16([16]byte(b[ipv6Src:]))
		h.Dst = netip.AddrFrom16([16]byte(b[ipv6Dst:]))
		return true
	}
	return false
}

// DontFragment reports whether a router may not fragment the packet b that
// Parse described in h: IPv4 with DF set, and all of IPv6.
func (h *Header) DontFragment(b []byte) bool {
	return h.Version == 6 || binary.BigEndian.Uint16(b[ipv4Frag:])&ipv4DontFragment != 0
}

// Resent reports whether the sender of the packet b that Parse described in h
// retransmits it in smaller pieces when it learns that the path MTU is too small. TCP
// does, unless the packet is a fragment.
func (h *Header) Resent(b []byte) bool {
	if h.Fragment {
		return false
	}
	proto := h.Proto
	if h.Version == 6 {
		proto, _ = upperLayer(b)
	}
	return proto == protoTCP
}

// sourceRouted reports whether the IPv4 packet b, which h describes, has a source
// route (RFC 791 §3.1), in which case its destination may not be the final one.
func sourceRouted(b []byte, h *Header) bool {
	if h.Version != 4 {
		return false
	}
	for opts := b[ipv4HeaderLen:h.IPLen]; len(opts) > 0; {
		n := 1
		switch opts[0] {
		case ipv4OptEnd:
			return false
		case ipv4OptNop:
		case ipv4OptLSRR, ipv4OptSSRR:
			return true
		default:
			if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
				return true // malformed; nothing relies on what may follow
			}
			n = int(opts[1])
		}
		opts = opts[n:]
	}
	return false
}

// transportLen returns the length of the transport header at b[ipLen:], or 0
// if it is not a whole TCP or UDP header.
func transportLen(b []byte, ipLen int, proto uint8) int {
	switch proto {
	case protoTCP:
		if len(b)-ipLen < tcpHeaderLen {
			return 0
		}
		n := int(b[ipLen+tcpDataOff]>>4) * 4
		if n < tcpHeaderLen || len(b)-ipLen < n {
			return 0
		}
		return n
	case protoUDP:
		if len(b)-ipLen < udpHeaderLen {
			return 0
		}
		return udpHeaderLen
	}
	return 0
}

// ChecksumOffset returns the offset of the checksum within a TCP or UDP header.
func ChecksumOffset(proto uint8) int {
	if proto == protoUDP {
		return udpChecksum
	}
	return tcpChecksum
}

// setLen writes the packet length n into the IP header b and updates the
// IPv4 header checksum.
func setLen(b []byte, ipLen, n int) {
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[ipv4TotalLen:], uint16(n))
		setIPv4Checksum(b, ipLen)
		return
	}
	binary.BigEndian.PutUint16(b[ipv6PayloadLen:], uint16(n-ipv6HeaderLen))
}
