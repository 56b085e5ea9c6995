package encap

import (
	"encoding/binary"
	"math/bits"
)

// Internet checksum, RFC 1071. A sum here is a 64-bit accumulator of the
// big-endian 16-bit words in ones' complement arithmetic, not yet folded and
// not complemented. In ones' complement addition the width of the words does not
// matter as long as carries are added back in (RFC 1071 §2(C)), so the
// loop below adds eight bytes at a time.

// sum adds the bytes of b to the accumulator acc. A slice of odd length is
// padded with a zero byte, so only the last of several slices may be odd.
//
// The words are added in the byte order of the machine and the folded result is
// swapped once: the ones' complement sum commutes with swapping (RFC 1071
// §2(B)).
func sum(b []byte, acc uint64) uint64 {
	var s uint64
	if n := len(b) &^ (vectorBlock - 1); vectorSum && n > 0 {
		s = sumVector(&b[0], n)
		b = b[n:]
	}
	var word [2]byte
	binary.NativeEndian.PutUint16(word[:], fold(sumWords(b, s)))
	acc, carry := bits.Add64(acc, uint64(binary.BigEndian.Uint16(word[:])), 0)
	return acc + carry
}

// sumWords adds the bytes of b to s as words in the byte order of the machine.
// It does all the work on machines without sumVector, and handles the tail of b on
// the others.
func sumWords(b []byte, s uint64) uint64 {
	var carry uint64
	for len(b) >= 64 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[0:8]), 0)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[8:16]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[16:24]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[24:32]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[32:40]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[40:48]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[48:56]), carry)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b[56:64]), carry)
		s += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var tail [8]byte
		copy(tail[:], b)
		s, carry = bits.Add64(s, binary.NativeEndian.Uint64(tail[:]), 0)
		s += carry
	}
	return s
}

// fold reduces an accumulator to the 16-bit ones' complement sum.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// without subtracts the 16-bit words at the beginning of each field from the sum
// acc by adding their complements.
func without(acc uint64, fields ...[]byte) uint64 {
	s := uint64(fold(acc))
	for _, f := range fields {
		s += uint64(^binary.BigEndian.Uint16(f))
	}
	return s
}

// equalSums reports whether two accumulators have the same value. Ones' complement
// has two zeros.
func equalSums(a, b uint64) bool {
	x, y := fold(a), fold(b)
	return x == y || x%0xffff == 0 && y%0xffff == 0
}

// pseudoSum returns the sum of the pseudo header (RFC 9293 §3.1, RFC 8200
// §8.1) of a packet with the IP header ip and n bytes of transport header and payload.
// The destination in ip must be the final one.
func pseudoSum(ip []byte, proto uint8, n int) uint64 {
	acc := uint64(proto) + uint64(n)
	if ip[0]>>4 == 4 {
		return acc + uint64(binary.BigEndian.Uint32(ip[ipv4Src:])) + uint64(binary.BigEndian.Uint32(ip[ipv4Dst:]))
	}
	return sum(ip[ipv6Src:ipv6Src+32], acc)
}

// setIPv4Checksum computes the header checksum of the IPv4 header b of length
// ipLen.
func setIPv4Checksum(b []byte, ipLen int) {
	binary.BigEndian.PutUint16(b[ipv4Checksum:], 0)
	binary.BigEndian.PutUint16(b[ipv4Checksum:], ^fold(sum(b[:ipLen], 0)))
}

// ipChecksumValid reports whether the IPv4 header checksum of the packet b, if
// it has one, is correct.
func ipChecksumValid(b []byte, ipLen int) bool {
	if b[0]>>4 != 4 {
		return true
	}
	if ipLen != ipv4HeaderLen {
		return fold(sum(b[:ipLen], 0)) == 0xffff
	}
	s, carry := bits.Add64(binary.NativeEndian.Uint64(b), binary.NativeEndian.Uint64(b[8:]), 0)
	s, carry = bits.Add64(s, uint64(binary.NativeEndian.Uint32(b[16:])), carry)
	return fold(s+carry) == 0xffff
}

// checksumsValid reports whether the IPv4 header checksum, if there is one,
// and the TCP or UDP checksum of the packet b are correct. A UDP checksum of
// zero, "none", does not count as correct.
func checksumsValid(b []byte, ipLen int, proto uint8) bool {
	if !ipChecksumValid(b, ipLen) {
		return false
	}
	if proto == protoUDP && binary.BigEndian.Uint16(b[ipLen+udpChecksum:]) == 0 {
		return false
	}
	return fold(sum(b[ipLen:], pseudoSum(b, proto, len(b)-ipLen))) == 0xffff
}

// PartialChecksum reports whether the checksum of the TCP or UDP packet b that h
// describes still has to be completed: whether the field holds the pseudo header's
// sum, as Linux leaves it to a device (CHECKSUM_PARTIAL). One in 65,536 packets with
// a complete checksum looks the same. Completing it again does not harm an intact
// packet, and a damaged one passes no more often than the checksum itself allows.
//
// A datagram shorter than its IP packet (RFC 9868) does not qualify, since the
// checksum does not cover the rest; nor does a packet on a source route, whose pseudo
// header has a destination other than the one in its IP header.
func PartialChecksum(b []byte, h *Header) bool {
	if h.Fragment || transportLen(b, h.IPLen, h.Proto) == 0 || sourceRouted(b, h) {
		return false
	}
	if h.Proto == protoUDP && int(binary.BigEndian.Uint16(b[h.IPLen+udpLength:])) != len(b)-h.IPLen {
		return false
	}
	at := h.IPLen + ChecksumOffset(h.Proto)
	return binary.BigEndian.Uint16(b[at:]) == fold(pseudoSum(b, h.Proto, len(b)-h.IPLen))
}

// CompleteChecksum completes the checksum of b that the kernel left to the
// device (virtio NEEDS_CSUM): it stores the ones' complement of the sum of
// everything from start on at start+offset. Before the call the field holds the
// pseudo header's sum. It returns false and leaves b unchanged if the two offsets
// do not lie within b.
func CompleteChecksum(b []byte, start, offset int) bool {
	if start < 0 || start > len(b) || offset < 0 || offset > len(b)-start-2 {
		return false
	}
	c := ^fold(sum(b[start:], 0))
	if c == 0 && offset == udpChecksum {
		c = 0xffff // zero means "no checksum" in UDP (RFC 768)
	}
	binary.BigEndian.PutUint16(b[start+offset:], c)
	return true
}
