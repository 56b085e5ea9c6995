package encap

import "encoding/binary"

// Kind is what a packet represents.
type Kind uint8

const (
	Whole    Kind = iota // one packet
	SegTCP               // TCP segments of Super.Size payload bytes each
	SegUDP               // UDP datagrams of Super.Size payload bytes each
	numKinds             // number of kinds, for tables
)

func (k Kind) proto() uint8 {
	if k == SegUDP {
		return protoUDP
	}
	return protoTCP
}

// Super describes a super-packet in addition to its bytes, in terms of the virtio-net
// header (virtio 1.2 §5.1.6) but independent of its encoding. The zero
// Super describes one packet with complete checksums.
type Super struct {
	Kind Kind
	// Size is the payload in bytes of each segment except the last, which may
	// be shorter.
	Size int
	// Partial means that the checksum at CsumStart+CsumOffset holds only the
	// pseudo header's sum and covers everything from CsumStart on.
	Partial               bool
	CsumStart, CsumOffset int
	// HeaderLen is the length of all headers up to the payload. Splitter
	// does not read it: kernels report it wrong for forwarded packets.
	HeaderLen int
}

// NeedsOversize reports whether a received packet must go through Oversize.
func NeedsOversize(h *Header, mtu TunnelMTU) bool {
	return h.Len > int(mtu) && h.Proto == protoTCP && !h.Fragment
}

// Oversize prepares a packet larger than the MTU for the device as a
// super-packet. Such a packet arrives if the sender's kernel encapsulated
// TSO packets and no device on the way had to segment them: it arrives as one
// datagram, without a control message, and with a checksum that is still left
// to the device.
//
// pkt, which h describes, is changed in place: its checksum becomes partial.
// ok is false if the checksum is neither complete and correct nor partial, or
// the headers are damaged; the packet must then be dropped. NeedsOversize must
// have returned true for h.
func Oversize(pkt []byte, h *Header, mtu TunnelMTU) (s Super, ok bool) {
	tl := transportLen(pkt, h.IPLen, h.Proto)
	hl := h.IPLen + tl
	if tl == 0 || int(mtu) <= hl {
		return s, false
	}
	at := h.IPLen + tcpChecksum
	partial := fold(pseudoSum(pkt, h.Proto, len(pkt)-h.IPLen))
	if binary.BigEndian.Uint16(pkt[at:]) != partial {
		if !checksumsValid(pkt, h.IPLen, h.Proto) {
			return s, false
		}
		binary.BigEndian.PutUint16(pkt[at:], partial)
	}
	return Super{
		Kind: SegTCP, Size: int(mtu) - hl, HeaderLen: hl,
		Partial: true, CsumStart: h.IPLen, CsumOffset: tcpChecksum,
	}, true
}
