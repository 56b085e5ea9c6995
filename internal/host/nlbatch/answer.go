package nlbatch

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

// answer is the kernel's answer to a request.
type answer struct {
	seq uint32
	err error // nil, or an error that wraps a unix.Errno
}

const (
	// sizeofErrno is the size of the error field of struct nlmsgerr
	// (linux/netlink.h), which precedes the header of the request.
	sizeofErrno = 4
	// typeMask removes the flags from an attribute's type (NLA_TYPE_MASK).
	typeMask = 1<<14 - 1
)

// answers iterates over the answers in a datagram from the kernel and skips
// other messages. It stops at a truncated one.
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

// answered parses struct nlmsgerr: a negative errno, or 0 for success.
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

// reason returns the kernel's error text, or "" if there is none. The text is
// an attribute after the request, of which only the header is present if flags
// has NLM_F_CAPPED.
func reason(b []byte, flags uint16) string {
	if flags&unix.NLM_F_ACK_TLVS == 0 || len(b) < unix.SizeofNlMsghdr {
		return ""
	}
	request := unix.SizeofNlMsghdr
	if flags&unix.NLM_F_CAPPED == 0 {
		// Limit it to len(b), since a larger value could be negative in a
		// 32-bit int.
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
