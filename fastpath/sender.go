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
	closed  bool // no packet may follow the last
}

// sender hands messages to the kernel.
type sender interface {
	// send sends a prefix of msgs and returns how many messages it took;
	// errno is 0 if it took at least one, and else what is wrong with the
	// first.
	send(msgs []message) (int, unix.Errno)
}

// mmsgSender sends through sendmmsg, trains through UDP_SEGMENT.
type mmsgSender struct {
	fd      int
	ipv6    bool
	msgs    []mmsghdr
	control []byte
}

func newMmsgSender(fd int, ipv6 bool) *mmsgSender {
	return &mmsgSender{
		fd: fd, ipv6: ipv6,
		msgs:    make([]mmsghdr, maxMessages),
		control: make([]byte, maxMessages*sendControlLen),
	}
}

func (s *mmsgSender) send(msgs []message) (int, unix.Errno) {
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
// for each datagram that arrives or has left; nobody waits there.
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
	conn    batchConn
	ipv6    bool
	msgs    []ipv4.Message
	addrs   []net.UDPAddr
	buffers [][]byte
	control []byte
}

// newBatchSender returns a sender on fd, which stays the caller's.
func newBatchSender(fd int, local netip.Addr) *batchSender {
	s := &batchSender{
		ipv6:    local.Is6(),
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
	var errno unix.Errno
	if !errors.As(err, &errno) {
		errno = unix.EINVAL // x/net's own: it could not encode the messages
	}
	return 0, errno
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
