package nlbatch

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// answer is what the kernel says of a request.
type answer struct {
	seq uint32
	err error // nil, or one that wraps a unix.Errno
}

const (
	// sizeofErrno is the error field of struct nlmsgerr (linux/netlink.h); the
	// header of the request follows it.
	sizeofErrno = 4
	// typeMask takes the flags off an attribute's type (NLA_TYPE_MASK).
	typeMask = 1<<14 - 1
)

// answers goes through the answers in a datagram from the kernel and passes over
// all that is none. It stops at what is cut short.
func answers(b []byte) iter.Seq[answer] {
	return func(yield func(answer) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[4:])
			flags := binary.NativeEndian.Uint16(b[6:])
			seq := binary.NativeEndian.Uint32(b[8:])
			body := b[unix.SizeofNlMsghdr:size]
			if kind == unix.NLMSG_ERROR && len(body) >= sizeofErrno {
				if !yield(answer{seq, answered(body, flags)}) {
					return
				}
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// answered reads struct nlmsgerr: a negative errno, 0 for success.
func answered(body []byte, flags uint16) error {
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 {
		return nil
	}
	if text := reason(body[sizeofErrno:], flags); text != "" {
		return fmt.Errorf("%w (%s)", errno, text)
	}
	return errno
}

// reason returns the kernel's text, empty if there is none. It stands in an
// attribute after the request, of which only the header is there where flags
// have NLM_F_CAPPED.
func reason(b []byte, flags uint16) string {
	if flags&unix.NLM_F_ACK_TLVS == 0 || len(b) < unix.SizeofNlMsghdr {
		return ""
	}
	request := unix.SizeofNlMsghdr
	if flags&unix.NLM_F_CAPPED == 0 {
		// Larger than it is, it would be less than 0 where int has 32 bits.
		request = align(int(min(binary.NativeEndian.Uint32(b), uint32(len(b)))))
	}
	b = b[min(request, len(b)):]
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:])&typeMask == unix.NLMSGERR_ATTR_MSG {
			return unix.ByteSliceToString(b[unix.SizeofRtAttr:size])
		}
		b = b[min(align(size), len(b)):]
	}
	return ""
}

// align rounds up to a multiple of 4 (NLMSG_ALIGN, RTA_ALIGN).
func align(n int) int { return (n + 3) &^ 3 }
