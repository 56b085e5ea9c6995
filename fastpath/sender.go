package fastpath

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// message is one datagram, or with GSO a train of them, on its way to a peer.
// Its memory belongs to the sends that made it and is borrowed for one call.
type message struct {
	peer    *Peer
	iov     []unix.Iovec
	segment int // bytes of each packet but the last, which may be shorter
	bytes   int
	packets int
	tos     uint8
	// fragment lets the kernel send the datagram in fragments, without DF in
	// the outer header.
	fragment bool
	closed   bool // no packet may follow the last
}

// sender hands messages to the kernel.
type sender interface {
	// send sends a prefix of msgs and returns how many messages it took;
	// errno is 0 if it took at least one, and else what is wrong with the
	// first.
	send(msgs []message) (int, unix.Errno)
}

// fragmenting is whether the kernel may fragment what a socket sends. That is a
// property of the socket (IP_MTU_DISCOVER; there is no control message for it),
// so a sender switches it between messages, which few packets need.
type fragmenting struct {
	fd   int
	ipv6 bool
	on   bool
}

// prefix returns the first messages of msgs that want the same, having set the
// socket up for them.
func (f *fragmenting) prefix(msgs []message) ([]message, unix.Errno) {
	want := msgs[0].fragment
	if want != f.on {
		if errno := setFragmenting(f.fd, f.ipv6, want); errno != 0 {
			return nil, errno
		}
		f.on = want
	}
	for i := range msgs {
		if msgs[i].fragment != want {
			return msgs[:i], 0
		}
	}
	return msgs, 0
}

// mmsgSender sends through sendmmsg, trains through UDP_SEGMENT.
type mmsgSender struct {
	fragmenting
	msgs    []mmsghdr
	control []byte
}

func newMmsgSender(fd int, ipv6 bool) *mmsgSender {
	return &mmsgSender{
		fragmenting: fragmenting{fd: fd, ipv6: ipv6},

		msgs:    make([]mmsghdr, maxMessages),
		control: make([]byte, maxMessages*sendControlLen),
	}
}

func (s *mmsgSender) send(msgs []message) (int, unix.Errno) {
	msgs, errno := s.prefix(msgs)
	if errno != 0 {
		return 0, errno
	}
	for i := range msgs {
		m, h := &msgs[i], &s.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&m.peer.name))
		h.Namelen = m.peer.nameLen
		setVectors(h, m.iov)
		segment := 0
		if m.packets > 1 {
			segment = m.segment
		}
		at := i * sendControlLen
		setControl(h, sendControl(s.control[at:at:at+sendControlLen], segment, m.tos, s.ipv6))
	}
	return sendmmsg(s.fd, s.msgs[:len(msgs)])
}

// batchConn is the part of ipv4.PacketConn and ipv6.PacketConn that sends.
type batchConn interface {
	WriteBatch([]ipv4.Message, int) (int, error)
}

// descriptor is a UDP socket as x/net wants it, without Go's poller. A net.UDPConn
// registers its socket with the poller, which then wakes a thread of the runtime
// for each datagram that arrives or has left; nothing waits there.
type descriptor struct {
	*net.UDPConn // nil; that it has these methods makes this a UDP connection for x/net, which calls none but those below
	fd           int
}

// SyscallConn implements syscall.Conn.
func (d descriptor) SyscallConn() (syscall.RawConn, error) { return rawDescriptor(d.fd), nil }

// LocalAddr is what x/net puts into its errors.
func (d descriptor) LocalAddr() net.Addr { return (*net.UDPAddr)(nil) }

// rawDescriptor is a syscall.RawConn that calls its functions once, ready or not.
type rawDescriptor int

func (r rawDescriptor) Control(f func(fd uintptr)) error    { f(uintptr(r)); return nil }
func (r rawDescriptor) Read(f func(fd uintptr) bool) error  { f(uintptr(r)); return nil }
func (r rawDescriptor) Write(f func(fd uintptr) bool) error { f(uintptr(r)); return nil }

// batchSender sends single datagrams through x/net: the plain engine's way.
// It is not used to receive, because ReadBatch allocates an address for each
// datagram.
type batchSender struct {
	fragmenting
	conn    batchConn
	msgs    []ipv4.Message
	addrs   []net.UDPAddr
	buffers [][]byte
	control []byte
}

// newBatchSender returns a sender on fd, which stays the caller's.
func newBatchSender(fd int, local netip.Addr) *batchSender {
	s := &batchSender{
		fragmenting: fragmenting{fd: fd, ipv6: local.Is6()},

		msgs:    make([]ipv4.Message, maxMessages),
		addrs:   make([]net.UDPAddr, maxMessages),
		buffers: make([][]byte, 0, maxVectors),
		control: make([]byte, maxMessages*sendControlLen),
	}
	for i := range s.msgs {
		s.addrs[i].IP = make(net.IP, local.BitLen()/8)
		s.msgs[i].Addr = &s.addrs[i]
	}
	if s.ipv6 {
		s.conn = ipv6.NewPacketConn(descriptor{fd: fd})
	} else {
		s.conn = ipv4.NewPacketConn(descriptor{fd: fd})
	}
	return s
}

func (s *batchSender) send(msgs []message) (int, unix.Errno) {
	msgs, errno := s.prefix(msgs)
	if errno != 0 {
		return 0, errno
	}
	s.buffers = s.buffers[:0]
	for i := range msgs {
		m, out := &msgs[i], &s.msgs[i]
		from := len(s.buffers)
		for j := range m.iov {
			s.buffers = append(s.buffers, vectorBytes(&m.iov[j]))
		}
		out.Buffers = s.buffers[from:]
		at := i * sendControlLen
		out.OOB = sendControl(s.control[at:at:at+sendControlLen], 0, m.tos, s.ipv6)
		copyAddr(&s.addrs[i], m.peer.Endpoint)
	}
	n, err := s.conn.WriteBatch(s.msgs[:len(msgs)], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if n > 0 || err == nil {
		return n, 0
	}
	var refusal unix.Errno
	if !errors.As(err, &refusal) {
		refusal = unix.EINVAL // x/net's own: it could not encode the messages
	}
	return 0, refusal
}

// copyAddr writes a to dst, whose IP has the length of a's family.
func copyAddr(dst *net.UDPAddr, a netip.AddrPort) {
	if a.Addr().Is4() {
		b := a.Addr().As4()
		copy(dst.IP, b[:])
	} else {
		b := a.Addr().As16()
		copy(dst.IP, b[:])
	}
	dst.Port = int(a.Port())
}
