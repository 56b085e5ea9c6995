package encap

import (
	"encoding/binary"
	"errors"
)

// ErrMalformedSuper reports a super-packet whose headers contradict its Super.
var ErrMalformedSuper = errors.New("super-packet does not match its offload header")

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpURG = 0x20
	tcpCWR = 0x80
)

// Splitter splits a super-packet into the packets it represents, in order. It
// copies no payload: each segment is a header, which Next writes into memory of
// the caller, and a view of the payload in place.
//
// The zero Splitter has no segments. It may be used again after Reset, by one
// goroutine at a time.
type Splitter struct {
	header  []byte // of the super-packet
	payload []byte // not yet returned
	ipLen   int    // with extension headers
	size    int
	kind    Kind
	v4      bool

	seq      uint32 // TCP sequence number of the next segment
	id       uint16 // IPv4 identification of the next segment
	flags    uint8  // TCP flags of the super-packet
	first    bool
	ipSum    uint64 // sum of the IPv4 header without total length, ID, checksum
	pseudo   uint64 // sum of the pseudo header without length
	transSum uint64 // pseudo and the transport header's, without lengths, sequence number, flags, checksum
	final    bool   // the receiver can compute pseudo from the IP header
	partial  bool
}

// Reset prepares s to split pkt, which s borrows until the last segment has been
// returned. Parse must have accepted pkt and filled in h. Headers may be of any
// length: everything the kernel can segment can be split here.
func (s *Splitter) Reset(pkt []byte, h *Header, super Super) error {
	s.header, s.payload, s.first, s.partial = nil, nil, false, false
	ipLen := h.IPLen
	if super.Partial {
		// Behind IPv6 extension headers only the checksum's start
		// shows where the transport header begins.
		ipLen = super.CsumStart
	}
	proto := super.Kind.proto()
	switch {
	case super.Kind == Whole || super.Kind >= numKinds,
		super.Size <= 0 || super.Size > MaxPacket,
		h.Fragment,
		ipLen < h.IPLen,
		ipLen > h.IPLen && h.Version == 4,
		ipLen == h.IPLen && h.Proto != proto,
		super.Partial && super.CsumOffset != ChecksumOffset(proto),
		!super.Partial && sourceRouted(pkt, h):
		return ErrMalformedSuper
	}
	tl := transportLen(pkt, ipLen, proto)
	if tl == 0 {
		return ErrMalformedSuper
	}
	s.header, s.payload = pkt[:ipLen+tl], pkt[ipLen+tl:]
	s.ipLen, s.size, s.kind, s.v4 = ipLen, super.Size, super.Kind, h.Version == 4
	s.first = true
	if s.v4 {
		s.id = binary.BigEndian.Uint16(pkt[ipv4ID:])
		s.ipSum = sum(pkt[:ipLen], 0)
		s.ipSum = without(s.ipSum, pkt[ipv4TotalLen:], pkt[ipv4ID:], pkt[ipv4Checksum:])
	}
	s.sumPseudo(pkt, h, super.Partial)
	trans := s.header[ipLen:]
	s.transSum = sum(trans, s.pseudo)
	if s.kind == SegTCP {
		s.seq = binary.BigEndian.Uint32(trans[tcpSeq:])
		s.flags = trans[tcpFlags]
		s.transSum = without(s.transSum, trans[tcpSeq:], trans[tcpSeq+2:], []byte{0, s.flags}, trans[tcpChecksum:])
	} else {
		s.transSum = without(s.transSum, trans[udpLength:], trans[udpChecksum:])
	}
	return nil
}

// sumPseudo computes the sum of the pseudo header. The pseudo header has the
// *final* destination, which differs from the one in the IP header if a routing
// header or a source route leads through other nodes (RFC 8200 §8.1, RFC 1122
// §3.2.1.8). A partial checksum holds the correct sum, with the length of the
// super-packet.
func (s *Splitter) sumPseudo(pkt []byte, h *Header, partial bool) {
	header := pseudoSum(pkt, s.kind.proto(), 0)
	s.pseudo, s.final = header, s.ipLen == h.IPLen
	if partial {
		at := s.ipLen + ChecksumOffset(s.kind.proto())
		length := uint16(len(pkt) - s.ipLen)
		s.pseudo = uint64(binary.BigEndian.Uint16(pkt[at:])) + uint64(^length)
		s.final = s.final && equalSums(s.pseudo, header)
	}
}

// LeavePartial makes Next leave the TCP or UDP checksum to be completed by
// the receiver of the segments (see PartialChecksum), which saves reading the
// payload. It is called after Reset. It has no effect if the receiver would not
// recognise the sum: behind IPv6 extension headers, and if the destination in
// the header is not the final one.
func (s *Splitter) LeavePartial() { s.partial = s.final }

// MoveHeader copies the header of the super-packet to b, which must have room for it, so
// that the header in the packet may be overwritten.
func (s *Splitter) MoveHeader(b []byte) { s.header = b[:copy(b, s.header)] }

// HeaderLen returns the length of each segment's header in bytes.
func (s *Splitter) HeaderLen() int { return len(s.header) }

// Remaining returns how many segments are left.
func (s *Splitter) Remaining() int {
	if s.first && len(s.payload) == 0 {
		return 1
	}
	if len(s.payload) == 0 {
		return 0
	}
	return (len(s.payload) + s.size - 1) / s.size
}

// NextLen returns the length of the next segment, header included.
func (s *Splitter) NextLen() int { return len(s.header) + min(s.size, len(s.payload)) }

// Next writes the header of the next segment to hdr[:HeaderLen()], with a complete
// checksum unless LeavePartial was called, and returns its payload, a view
// into the super-packet. It must be called only while Remaining is not zero.
func (s *Splitter) Next(hdr []byte) (payload []byte) {
	n := min(s.size, len(s.payload))
	payload, s.payload = s.payload[:n:n], s.payload[n:]
	hdr = hdr[:len(s.header)]
	copy(hdr, s.header)
	total := len(s.header) + n
	if s.v4 {
		binary.BigEndian.PutUint16(hdr[ipv4TotalLen:], uint16(total))
		binary.BigEndian.PutUint16(hdr[ipv4ID:], s.id)
		binary.BigEndian.PutUint16(hdr[ipv4Checksum:], ^fold(s.ipSum+uint64(total)+uint64(s.id)))
		s.id++
	} else {
		binary.BigEndian.PutUint16(hdr[ipv6PayloadLen:], uint16(total-ipv6HeaderLen))
	}
	// Headers have an even length, so the payload's sum needs no shift.
	// transSum is a 64-bit accumulator without headroom: fold it before
	// adding small terms.
	trans := hdr[s.ipLen:]
	length := total - s.ipLen
	acc := uint64(fold(s.transSum)) + uint64(length)
	if s.kind == SegTCP {
		flags := s.flags
		if !s.first {
			flags &^= tcpCWR
		}
		if len(s.payload) > 0 {
			flags &^= tcpFIN | tcpPSH
		}
		binary.BigEndian.PutUint32(trans[tcpSeq:], s.seq)
		trans[tcpFlags] = flags
		if !s.partial {
			acc += uint64(s.seq) + uint64(flags)
			binary.BigEndian.PutUint16(trans[tcpChecksum:], ^fold(sum(payload, acc)))
		}
		s.seq += uint32(n)
	} else {
		binary.BigEndian.PutUint16(trans[udpLength:], uint16(length))
		if !s.partial {
			c := ^fold(sum(payload, acc+uint64(length)))
			if c == 0 {
				c = 0xffff // zero means "no checksum" (RFC 768)
			}
			binary.BigEndian.PutUint16(trans[udpChecksum:], c)
		}
	}
	if s.partial {
		at := ChecksumOffset(s.kind.proto())
		binary.BigEndian.PutUint16(trans[at:], fold(s.pseudo+uint64(length)))
	}
	s.first = false
	return payload
}
