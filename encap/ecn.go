package encap

import "encoding/binary"

// ECN codepoints, the two low bits of TOS and traffic class (RFC 3168 §5).
const (
	ecnMask   = 0x03
	ecnNotECT = 0x00
	ecnECT1   = 0x01
	ecnECT0   = 0x02
	ecnCE     = 0x03
)

// OuterTOS returns the TOS of the datagram that carries a packet with the TOS
// inner. As in kernel VXLAN, the ECN field is copied (RFC 6040 §4.1, normal mode)
// and the DSCP is not: pods must not choose traffic classes of the underlay.
func OuterTOS(inner uint8) uint8 { return inner & ecnMask }

// MergeECN combines the ECN field of the outer header with that of the packet b that
// h describes, as specified in RFC 6040 §4.2 (figure 4), and updates the IPv4 header
// checksum. It returns false if the packet must be dropped: the outer header marks
// congestion, and the inner sender would not understand the mark.
func MergeECN(b []byte, h *Header, outer uint8) bool {
	in, out := h.TOS&ecnMask, outer&ecnMask
	if out == in || out == ecnNotECT || in == ecnCE {
		return true
	}
	if in == ecnNotECT {
		return out != ecnCE
	}
	// Inner ECT: outer CE marks it, and so does outer ECT(1) over inner ECT(0);
	// in the opposite case the inner field stays.
	if out == ecnECT0 {
		return true
	}
	setECN(b, h, out)
	return true
}

// setECN replaces the ECN field of the packet b.
func setECN(b []byte, h *Header, ecn uint8) {
	h.TOS = h.TOS&^ecnMask | ecn
	if h.Version == 6 {
		b[1] = b[1]&^(ecnMask<<4) | ecn<<4
		return
	}
	// RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m'), kept incremental so that a
	// header that arrived damaged stays damaged.
	old := binary.BigEndian.Uint16(b)
	b[ipv4TOS] = h.TOS
	acc := uint64(^binary.BigEndian.Uint16(b[ipv4Checksum:])) +
		uint64(^old) + uint64(binary.BigEndian.Uint16(b))
	binary.BigEndian.PutUint16(b[ipv4Checksum:], ^fold(acc))
}
