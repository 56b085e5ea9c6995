// Package nlbatch makes many changes to routes, neighbours and FDB entries in
// few system calls.
//
// A netlink request sent on its own costs a send, a wait for the answer and a
// wake-up. The kernel accepts any number of requests in one datagram, processes
// them in order even if some fail, and answers each by its sequence number
// (netlink_rcv_skb in net/netlink/af_netlink.c). So a hundred requests cost one
// send, and reading their answers costs no wait.
//
// The result of a request in the kernel's tables is identical to that of stock
// flannel's calls of github.com/vishvananda/netlink.
package nlbatch

import (
	"encoding/binary"
	"fmt"
	"iter"

	"golang.org/x/sys/unix"
)

const (
	// together is the size of groups of requests that are sent in the same
	// datagram, such as the three for one peer. A group begins at a multiple of
	// it.
	together = 3
	// maxRequests bounds the number of requests in a datagram, and thus how
	// long one send of Do keeps other processes waiting.
	maxRequests = 85 * together
	// maxBytes bounds the size of a datagram. The longest request has 92 bytes.
	maxBytes = 32 << 10
	// answerRoom is an upper bound for the space that an answer takes in the
	// receive buffer: some 900 bytes, nearly all of them the kernel's own
	// struct sk_buff, and more if it includes an error text.
	answerRoom = 2 << 10
	// receiveBuffer is the requested size in bytes: room for maxRequests
	// answers.
	receiveBuffer = maxRequests * answerRoom
)

// Conn is a netlink socket for batches of requests. It is not safe for
// concurrent use.
type Conn struct {
	fd       int
	port     uint32
	seq      uint32 // that of the last request
	requests int    // most in a datagram, so that the answers fit into the receive buffer
	bytes    int    // most in a datagram
	out      []byte // the datagram to send
	in       []byte // the answers received
}

// Dial opens a NETLINK_ROUTE socket in the network namespace of the calling
// thread. The socket stays in that namespace. Changes need CAP_NET_ADMIN.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &Conn{fd: fd, in: make([]byte, 4<<10)}
	if err := c.prepare(); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// prepare binds the socket and sizes its receive buffer.
func (c *Conn) prepare() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	self, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("read port of netlink socket: %w", err)
	}
	c.port = self.(*unix.SockaddrNetlink).Pid
	// Ask for answers without the request (Linux 4.3) and with an error text
	// (4.12). Older kernels do without either.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	// This exceeds net.core.rmem_max, if permitted.
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	receive, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return fmt.Errorf("read SO_RCVBUF of netlink socket: %w", err)
	}
	send, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("read SO_SNDBUF of netlink socket: %w", err)
	}
	c.requests = max(together, min(maxRequests, receive/answerRoom)/together*together)
	c.bytes = min(maxBytes, send/2)
	return nil
}

// Port returns the port number of the socket. The kernel puts it into the
// notifications about changes made over the socket (nlmsg_pid).
func (c *Conn) Port() uint32 { return c.port }

// Close closes the socket. It must not be called concurrently with Do.
func (c *Conn) Close() error {
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// ErrUnanswered is the error of a request for which it is unknown whether it
// was carried out. It wraps unix.ENOBUFS, which the kernel may also return as
// an answer.
var ErrUnanswered = fmt.Errorf("the kernel's answer was lost: %w", unix.ENOBUFS)

// Do sends the requests and returns for each, by its index, nil or the reason
// why it was not carried out. Either the request is invalid and was not sent,
// or the error is the kernel's answer, which wraps a unix.Errno. Requests are
// carried out in order; a failed one does not stop the rest. If answers are
// lost, which happens only if the kernel runs out of memory for them, the error
// is ErrUnanswered.
//
// err reports a failure of the socket; it is also the error in errs of the
// requests that were not sent because of it.
func (c *Conn) Do(reqs []Request) (errs []error, err error) {
	errs = make([]error, len(reqs))
	for done := 0; done < len(reqs); {
		n, sent := c.pack(reqs[done:], errs[done:])
		if sent > 0 {
			if err := c.send(); err != nil {
				return unsent(errs, done, err), err
			}
			if err := c.collect(errs[done:done+n], sent); err != nil {
				return unsent(errs, done+n, err), err
			}
		}
		done += n
	}
	return errs, nil
}

// unsent sets the error of all requests from begin on to err.
func unsent(errs []error, begin int, err error) []error {
	for i := begin; i < len(errs); i++ {
		errs[i] = err
	}
	return errs
}

// pack fills a datagram with the first n of reqs. sent of them are in it; the
// others are invalid and have their error set. Afterwards, request i has the
// sequence number c.seq-n+1+i.
func (c *Conn) pack(reqs []Request, errs []error) (n, sent int) {
	c.out = c.out[:0]
	for _, r := range reqs[:min(len(reqs), c.requests)] {
		size := unix.SizeofNlMsghdr + len(r.body)
		if sent > 0 && len(c.out)+size > c.bytes {
			break
		}
		c.seq++
		errs[n] = r.err
		if r.err == nil {
			errs[n] = ErrUnanswered
			// struct nlmsghdr of linux/netlink.h: length, type, flags, sequence
			// number, port. The length of a body is a multiple of 4 bytes.
			c.out = binary.NativeEndian.AppendUint32(c.out, uint32(size))
			c.out = binary.NativeEndian.AppendUint16(c.out, r.kind)
			c.out = binary.NativeEndian.AppendUint16(c.out, r.flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
			c.out = binary.NativeEndian.AppendUint32(c.out, c.seq)
			c.out = binary.NativeEndian.AppendUint32(c.out, 0)
			c.out = append(c.out, r.body...)
			sent++
		}
		n++
	}
	return n, sent
}

// send passes the datagram to the kernel. When it returns, all requests have
// been processed and their answers are in the receive buffer, since netlink is
// synchronous from user space to the kernel (commit cd40b7d3983c, Linux
// 2.6.24).
func (c *Conn) send() error {
	for {
		err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		switch err {
		case nil:
			return nil
		case unix.EINTR:
		default:
			return fmt.Errorf("send %d bytes of netlink requests: %w", len(c.out), err)
		}
	}
}

// collect reads the answers to the sent requests among the last len(errs), and
// stores them in errs.
func (c *Conn) collect(errs []error, sent int) error {
	first := c.seq - uint32(len(errs)) + 1
	for sent > 0 {
		n, from, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EINTR, unix.ENOBUFS: // ENOBUFS: some answers were lost, but earlier ones are still in the buffer
			continue
		case unix.EAGAIN: // no more answers
			return nil
		default:
			return fmt.Errorf("receive answers to netlink requests: %w", err)
		}
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue // any process with CAP_NET_ADMIN may send to the socket
		}
		for a := range answers(c.in[:n]) {
			// For an answer to an earlier request the unsigned difference is
			// large.
			if i := a.seq - first; i < uint32(len(errs)) {
				errs[i] = a.err
				sent--
			}
		}
	}
	return nil
}

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
