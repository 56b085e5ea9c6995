package encap

import "encoding/binary"

const (
	icmpHeaderLen = 8
	icmpTTL       = 64

	icmpUnreachable   = 3 // RFC 792
	icmpNet           = 0
	icmpFragNeeded    = 4 // RFC 1191 §4
	icmpv6Unreachable = 1 // RFC 4443 §3.1
	icmpv6NoRoute     = 0
	icmpv6TooBig      = 2 // RFC 4443 §3.2

	// MaxICMP is the longest ICMP error made here: what RFC 4443 §3.1 allows
	// for IPv6. For IPv4 it is 576 (RFC 1812 §4.3.2.3).
	MaxICMP   = MinIPv6MTU
	maxICMPv4 = 576
)

// TooBig makes the ICMP error "fragmentation needed" or "packet too big" for
// the packet pkt, which h describes and which does not fit mtu. See icmpError
// for dst and the result.
func TooBig(dst, pkt []byte, h *Header, mtu TunnelMTU) []byte {
	if h.Version == 4 {
		return icmpError(dst, pkt, h, icmpUnreachable, icmpFragNeeded, uint32(mtu))
	}
	return icmpError(dst, pkt, h, icmpv6TooBig, 0, uint32(mtu))
}

// Unreachable makes the ICMP error "net unreachable" or "no route to
// destination" for the packet pkt, which h describes. See icmpError for dst
// and the result.
func Unreachable(dst, pkt []byte, h *Header) []byte {
	if h.Version == 4 {
		return icmpError(dst, pkt, h, icmpUnreachable, icmpNet, 0)
	}
	return icmpError(dst, pkt, h, icmpv6Unreachable, icmpv6NoRoute, 0)
}

// icmpError writes an ICMP error about pkt to dst, which must have room for
// MaxICMP bytes, and returns the packet written. It returns nil where an error
// must not be sent (RFC 1122 §3.2.2, RFC 4443 §2.4(e)): about ICMP errors,
// fragments other than the first, and from or to addresses that are no single
// host's.
//
// The source is the destination of pkt, not an address of this host: the
// kernel drops what arrives on a device from one of its own addresses
// (fib_validate_source, unless accept_local=1), while the destination is
// routed to the device and so passes a strict rp_filter.
func icmpError(dst, pkt []byte, h *Header, typ, code uint8, rest uint32) []byte {
	if !h.Src.IsValid() || h.Src.IsUnspecified() || h.Src.IsMulticast() || h.Dst.IsMulticast() {
		return nil
	}
	limit, proto := MaxICMP, uint8(protoICMPv6)
	if h.Version == 4 {
		if binary.BigEndian.Uint16(pkt[ipv4Frag:])&ipv4OffsetMask != 0 || !h.Dst.IsGlobalUnicast() {
			return nil
		}
		limit, proto = maxICMPv4, protoICMP
	} else if h.Fragment {
		return nil
	}
	if h.Proto == proto && (len(pkt) == h.IPLen || icmpIsError(h.Version, pkt[h.IPLen])) {
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

	var acc uint64
	if h.Version == 4 {
		out[0] = 4<<4 | ipv4HeaderLen/4
		binary.BigEndian.PutUint16(out[ipv4Frag:], ipv4DontFragment)
		out[ipv4TTL], out[ipv4Proto] = icmpTTL, protoICMP
		copy(out[ipv4Src:], pkt[ipv4Dst:ipv4Dst+4])
		copy(out[ipv4Dst:], pkt[ipv4Src:ipv4Src+4])
	} else {
		out[0] = 6 << 4
		out[ipv6NextHeader], out[ipv6HopLimit] = protoICMPv6, icmpTTL
		copy(out[ipv6Src:], pkt[ipv6Dst:ipv6Dst+16])
		copy(out[ipv6Dst:], pkt[ipv6Src:ipv6Src+16])
		acc = pseudoSum(out, protoICMPv6, len(msg))
	}
	setLen(out, ipLen, len(out))
	binary.BigEndian.PutUint16(msg[2:], ^fold(sum(msg, acc)))
	return out
}

// icmpIsError reports whether an ICMP message of type t is an error message.
func icmpIsError(version, t uint8) bool {
	if version == 6 {
		return t < 128 // RFC 4443 §2.1
	}
	switch t {
	case 3, 4, 5, 11, 12: // unreachable, quench, redirect, time exceeded, parameter problem
		return true
	}
	return false
}
