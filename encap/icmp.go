package encap

import (
	"encoding/binary"
	"net/netip"
)

const (
	icmpHeaderLen = 8
	icmpTTL       = 64

	icmpUnreachable   = 3 // RFC 792
	icmpNet           = 0
	icmpFragNeeded    = 4 // RFC 1191 §4
	icmpv6Unreachable = 1 // RFC 4443 §3.1
	icmpv6NoRoute     = 0
	icmpv6TooBig      = 2 // RFC 4443 §3.2
	icmpEcho          = 8
	icmpv6Echo        = 128

	// MinEcho is the size of the smallest echo request of either family.
	MinEcho = ipv6HeaderLen + icmpHeaderLen

	// MaxICMP is the longest ICMP error built here: the limit that RFC 4443 §3.1
	// sets for IPv6. For IPv4 it is 576 (RFC 1812 §4.3.2.3).
	MaxICMP   = MinIPv6MTU
	maxICMPv4 = 576
)

// TooBig builds the ICMP error "fragmentation needed" or "packet too big" for
// the packet pkt, which h describes and which does not fit mtu. See icmpError
// for dst and the result.
func TooBig(dst, pkt []byte, h *Header, mtu TunnelMTU) []byte {
	if h.Version == 4 {
		return icmpError(dst, pkt, h, icmpUnreachable, icmpFragNeeded, uint32(mtu))
	}
	return icmpError(dst, pkt, h, icmpv6TooBig, 0, uint32(mtu))
}

// Unreachable builds the ICMP error "net unreachable" or "no route to
// destination" for the packet pkt, which h describes. See icmpError for dst
// and the result.
func Unreachable(dst, pkt []byte, h *Header) []byte {
	if h.Version == 4 {
		return icmpError(dst, pkt, h, icmpUnreachable, icmpNet, 0)
	}
	return icmpError(dst, pkt, h, icmpv6Unreachable, icmpv6NoRoute, 0)
}

// icmpError writes an ICMP error about pkt to dst, which must have room for
// MaxICMP bytes, and returns the packet written. It returns nil if an error
// must not be sent: about ICMP errors, from or to an address that does not
// belong to a single host (RFC 1122 §3.2.2, RFC 4443 §2.4(e)), and for IPv4 about
// fragments other than the first.
//
// The source is the destination of pkt, not an address of this host: the
// kernel drops what arrives on a device from one of its own addresses
// (fib_validate_source, unless accept_local=1), while the destination is
// routed to the device and so passes a strict rp_filter.
func icmpError(dst, pkt []byte, h *Header, typ, code uint8, rest uint32) []byte {
	if !h.Src.IsGlobalUnicast() || !h.Dst.IsGlobalUnicast() {
		return nil
	}
	limit, icmp := MaxICMP, uint8(protoICMPv6)
	proto, at := h.Proto, h.IPLen
	if h.Version == 4 {
		if binary.BigEndian.Uint16(pkt[ipv4Frag:])&ipv4OffsetMask != 0 {
			return nil
		}
		limit, icmp = maxICMPv4, protoICMP
	} else {
		proto, at = upperLayer(pkt)
	}
	if proto == icmp && (at >= len(pkt) || icmpIsError(h.Version, pkt[at])) {
		return nil
	}

	ipLen := ipv6HeaderLen
	if h.Version == 4 {
		ipLen = ipv4HeaderLen
	}
	quoted := min(len(pkt), limit-ipLen-icmpHeaderLen)
	out := dst[:ipLen+icmpHeaderLen+quoted]
	clear(out[:ipLen+icmpHeaderLen])
	msg := out[ipLen:]
	msg[0], msg[1] = typ, code
	binary.BigEndian.PutUint32(msg[4:], rest)
	copy(msg[icmpHeaderLen:], pkt[:quoted])

	if h.Version == 4 {
		finishICMP(out, pkt[ipv4Dst:ipv4Dst+4], pkt[ipv4Src:ipv4Src+4])
	} else {
		finishICMP(out, pkt[ipv6Dst:ipv6Dst+16], pkt[ipv6Src:ipv6Src+16])
	}
	return out
}

// Echo writes an ICMP echo request from src to dst into buf and returns it. size is its
// length in bytes, IP header included; it must be at least MinEcho and at most len(buf).
// The addresses must be of the same family. The packet has DF; its data are zeros.
func Echo(buf []byte, src, dst netip.Addr, size int) []byte {
	out := buf[:size]
	clear(out)
	from, to := src.AsSlice(), dst.AsSlice()
	if src.Is4() {
		out[ipv4HeaderLen] = icmpEcho
	} else {
		out[ipv6HeaderLen] = icmpv6Echo
	}
	finishICMP(out, from, to)
	return out
}

// EchoID returns the identifier of the packet b, which h describes, if it is an echo
// request that is not a fragment and, for IPv6, has no extension headers.
func EchoID(b []byte, h *Header) (id uint16, ok bool) {
	proto, request := uint8(protoICMP), uint8(icmpEcho)
	if h.Version == 6 {
		proto, request = protoICMPv6, icmpv6Echo
	}
	if h.Proto != proto || h.Fragment || len(b) < h.IPLen+icmpHeaderLen || b[h.IPLen] != request {
		return 0, false
	}
	return binary.BigEndian.Uint16(b[h.IPLen+4:]), true
}

// finishICMP completes out, which is an ICMP message preceded by room for an IP header
// without options, for a packet from src to dst, in network byte order. The room for the
// IP header and the ICMP checksum must be zero.
func finishICMP(out, src, dst []byte) {
	var acc uint64
	ipLen := ipv4HeaderLen
	if len(src) == 4 {
		out[0] = 4<<4 | ipv4HeaderLen/4
		binary.BigEndian.PutUint16(out[ipv4Frag:], ipv4DontFragment)
		out[ipv4TTL], out[ipv4Proto] = icmpTTL, protoICMP
		copy(out[ipv4Src:], src)
		copy(out[ipv4Dst:], dst)
	} else {
		ipLen = ipv6HeaderLen
		out[0] = 6 << 4
		out[ipv6NextHeader], out[ipv6HopLimit] = protoICMPv6, icmpTTL
		copy(out[ipv6Src:], src)
		copy(out[ipv6Dst:], dst)
		acc = pseudoSum(out, protoICMPv6, len(out)-ipLen)
	}
	setLen(out, ipLen, len(out))
	binary.BigEndian.PutUint16(out[ipLen+2:], ^fold(sum(out[ipLen:], acc)))
}

// upperLayer follows the extension headers of the IPv6 packet b (RFC 8200 §4)
// and returns the first next-header value that is not one of them, and the offset
// where it starts, which may be past the end of b. In a fragment other than the first
// it returns the fragment header's own number: no header follows.
func upperLayer(b []byte) (proto uint8, at int) {
	proto, at = b[ipv6NextHeader], ipv6HeaderLen
	for at+ipv6ExtMinLen <= len(b) {
		n := 0
		switch proto {
		case protoHopByHop, protoRouting, protoDestOpts:
			n = (int(b[at+1]) + 1) * 8
		case protoAuth:
			n = (int(b[at+1]) + 2) * 4 // RFC 4302 §2.2
		case protoIPv6Frag:
			if binary.BigEndian.Uint16(b[at+2:])>>3 != 0 {
				return proto, at
			}
			n = ipv6ExtMinLen
		default:
			return proto, at
		}
		proto, at = b[at], at+n
	}
	return proto, at
}

// icmpIsError reports whether an ICMP message of type t must not be answered
// with an error: error messages and redirects.
func icmpIsError(version, t uint8) bool {
	if version == 6 {
		return t < 128 || t == 137 // RFC 4443 §2.1, RFC 4861 §4.5
	}
	switch t {
	case 3, 4, 5, 11, 12: // unreachable, quench, redirect, time exceeded, parameter problem
		return true
	}
	return false
}
