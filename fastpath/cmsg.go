package fastpath

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Control messages, cmsg(3). The header is a size_t and two ints in the byte
// order of the machine; messages are aligned to the size of a size_t.
const (
	cmsgHeaderLen = unix.SizeofCmsghdr
	cmsgAlign     = unsafe.Sizeof(uintptr(0)) - 1

	// sendControlLen holds UDP_SEGMENT (uint16) and IP_TOS or IPV6_TCLASS
	// (int).
	sendControlLen = 64
	// recvControlLen holds UDP_GRO, IP_TOS or IPV6_TCLASS, and SO_RXQ_OVFL,
	// an int each.
	recvControlLen = 128
)

func cmsgSpace(n int) int {
	return int((uintptr(cmsgHeaderLen) + uintptr(n) + cmsgAlign) &^ cmsgAlign)
}

// appendControl appends a control message to b, which must have enough capacity.
func appendControl(b []byte, level, typ int32, data []byte) []byte {
	at := len(b)
	b = b[:at+cmsgSpace(len(data))]
	clear(b[at:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, typ
	h.SetLen(cmsgHeaderLen + len(data))
	copy(b[at+cmsgHeaderLen:], data)
	return b
}

// sendControl writes the control messages of a datagram to b[:0]: segment, if
// not 0, is the segment size of a GSO send; tos, if not 0, is the TOS or
// traffic class. ipv6 selects the family of the socket.
func sendControl(b []byte, segment int, tos uint8, ipv6 bool) []byte {
	b = b[:0]
	if segment > 0 {
		var v [2]byte
		binary.NativeEndian.PutUint16(v[:], uint16(segment))
		b = appendControl(b, unix.SOL_UDP, unix.UDP_SEGMENT, v[:])
	}
	if tos != 0 {
		var v [4]byte
		binary.NativeEndian.PutUint32(v[:], uint32(tos))
		if ipv6 {
			b = appendControl(b, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, v[:])
		} else {
			b = appendControl(b, unix.IPPROTO_IP, unix.IP_TOS, v[:])
		}
	}
	return b
}

// recvInfo is what the control messages of a received datagram hold.
type recvInfo struct {
	segment     int    // bytes of each segment of a GRO train, 0: one datagram
	tos         uint8  // of the outer header
	overflows   uint32 // datagrams dropped on this socket since it was opened
	hasOverflow bool
}

// parseControl reads the control messages in b, which must be aligned as a size_t.
// It returns false if they are malformed; info then holds what was parsed before.
func parseControl(b []byte, info *recvInfo) bool {
	*info = recvInfo{}
	for len(b) > 0 {
		if len(b) < cmsgHeaderLen {
			return false
		}
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
		if h.Len < cmsgHeaderLen || uint64(h.Len) > uint64(len(b)) {
			return false
		}
		data := b[cmsgHeaderLen:h.Len]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO:
			if len(data) < 4 {
				return false
			}
			segment := int32(binary.NativeEndian.Uint32(data))
			if segment <= 0 {
				return false
			}
			info.segment = int(segment)
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS:
			if len(data) < 1 {
				return false
			}
			info.tos = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS:
			if len(data) < 4 {
				return false
			}
			info.tos = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL:
			if len(data) < 4 {
				return false
			}
			info.overflows, info.hasOverflow = binary.NativeEndian.Uint32(data), true
		}
		b = b[min(len(b), cmsgSpace(len(data))):]
	}
	return true
}
