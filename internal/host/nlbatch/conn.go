// Package nlbatch hands the kernel many changes of routes, neighbours and FDB
// entries in few system calls.
//
// A netlink request that is sent alone costs a send, a wait for the answer and
// a wake-up. The kernel takes as many requests in one datagram as there are, goes
// through them in their order, whatever comes of each, and answers each by its
// sequence number (netlink_rcv_skb in net/netlink/af_netlink.c). So a hundred
// requests cost one send, and reading their answers costs no wait.
//
// What a request leaves in the kernel's tables is, to the bit, what stock
// flannel's calls of github.com/vishvananda/netlink leave there.
package nlbatch

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// together requests that begin at a multiple of it are in one datagram: the
	// three of a peer, say.
	together = 3
	// maxRequests bounds the requests of a datagram, and with it for how long
	// one Do keeps others waiting between its sends.
	maxRequests = 85 * together
	// maxBytes bounds a datagram. The longest request has 92 bytes.
	maxBytes = 32 << 10
	// answerRoom is what an answer takes of the receive buffer, at most: some
	// 900 bytes, nearly all of them the kernel's own struct sk_buff, and more
	// where it says why it refuses.
	answerRoom = 2 << 10
	// receiveBuffer is asked for, in bytes, so that maxRequests answers fit.
	receiveBuffer = maxRequests * answerRoom
)

// Conn is a netlink socket for requests in batches. It is not for concurrent
// use.
type Conn struct {
	fd       int
	port     uint32
	seq      uint32 // of the last request
	requests int    // most in a datagram, so that their answers fit the receive buffer
	bytes    int    // most in a datagram
	out      []byte // the datagram that is sent
	in       []byte // the answer that is read
}

// Dial opens a NETLINK_ROUTE socket in the network namespace of the calling
// thread. The socket stays there; changes need CAP_NET_ADMIN.
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

// prepare binds the socket and learns what it holds.
func (c *Conn) prepare() error {
	if err := unix.Bind(c.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", err)
	}
	self, err := unix.Getsockname(c.fd)
	if err != nil {
		return fmt.Errorf("read the port of netlink socket: %w", err)
	}
	c.port = self.(*unix.SockaddrNetlink).Pid
	// An answer without the request (Linux 4.3), and with a text that says what
	// is wrong with it (4.12). Without them there is less to read.
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(c.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	// Beyond net.core.rmem_max, where that is allowed.
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

// Port returns the port number of the socket. The kernel writes it into what it
// tells others of the changes that were made over the socket (nlmsg_pid).
func (c *Conn) Port() uint32 { return c.port }

// Close closes the socket. It must not run at the same time as Do.
func (c *Conn) Close() error {
	if err := unix.Close(c.fd); err != nil {
		return fmt.Errorf("close netlink socket: %w", err)
	}
	return nil
}

// ErrUnanswered is that of a request of which it is not known whether it was
// carried out. It wraps unix.ENOBUFS, which is an answer of the kernel's too.
var ErrUnanswered = fmt.Errorf("the kernel's answer was lost: %w", unix.ENOBUFS)

// Do sends the requests and returns for each, by its index, nil or why it was
// not carried out: what is wrong with the request, in which case it was not
// sent, or the kernel's answer, which wraps a unix.Errno. They are carried out in
// their order; one that fails stops none. Where answers are lost, which they are
// only if the kernel has no memory for them, there is ErrUnanswered.
//
// err tells that the socket fails; the requests that were not sent for it have
// it in errs too.
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

// unsent gives the requests from begin on the error err.
func unsent(errs []error, begin int, err error) []error {
	for i := begin; i < len(errs); i++ {
		errs[i] = err
	}
	return errs
}

// pack fills a datagram with the first n of reqs, of which sent are in it. The
// others are wrong and have their error. Request i has the sequence number
// c.seq-n+1+i afterwards.
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
			// number, port. Bodies are multiples of 4 bytes long.
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

// send hands the kernel the datagram. When it returns, all requests have been
// gone through and their answers are in the receive buffer: netlink is
// synchronous from user space to the kernel (commit cd40b7d3983c, Linux 2.6.24).
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
// puts them where they belong.
func (c *Conn) collect(errs []error, sent int) error {
	first := c.seq - uint32(len(errs)) + 1
	for sent > 0 {
		n, from, err := unix.Recvfrom(c.fd, c.in, unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EINTR, unix.ENOBUFS: // the second: some were lost, those before are still there
			continue
		case unix.EAGAIN: // there are no more
			return nil
		default:
			return fmt.Errorf("receive answers to netlink requests: %w", err)
		}
		if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
			continue // who has CAP_NET_ADMIN may send to the socket
		}
		for a := range answers(c.in[:n]) {
			// One to an earlier request is far away in unsigned numbers.
			if i := a.seq - first; i < uint32(len(errs)) {
				errs[i] = a.err
				sent--
			}
		}
	}
	return nil
}
