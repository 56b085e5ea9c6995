package fastpath

import (
	"errors"
	"iter"
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
	iov     []unix.Iovec // each holds one packet or several
	segment int          // bytes of each packet except the last, which may be shorter
	bytes   int
	packets int
	tos     uint8
	// fragment lets the kernel send the datagram in fragments, without DF in
	// the outer header.
	fragment bool
	// direct sends the message whatever path MTU the kernel has learnt.
	direct bool
	// fixedPort sends the message from the UDP port of the network instead of the
	// shard's own port.
	fixedPort bool
	closed    bool // no packet may follow the last
}

// each iterates over the packets of m.
func (m *message) each() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for i := range m.iov {
			for b := vectorBytes(&m.iov[i]); len(b) > 0; {
				n := min(m.segment, len(b))
				if !yield(b[:n:n]) {
					return
				}
				b = b[n:]
			}
		}
	}
}

// discovery returns the setting that the socket must have for m.
func (m *message) discovery() discovery {
	switch {
	case m.fragment:
		return fragmenting
	case m.direct:
		return ignoring
	}
	return believing
}

// sender passes messages to the kernel.
type sender interface {
	// send sends a prefix of msgs and returns how many messages the kernel
	// accepted; errno is 0 if it accepted at least one, and otherwise the error
	// for the first.
	send(msgs []message) (int, unix.Errno)
}

// outlet is a socket that messages are sent on. Whether the kernel may fragment what
// a socket sends is a property of the socket (IP_MTU_DISCOVER; there is no control
// message for it), so a sender switches it between messages. Few packets need that.
type outlet struct {
	fd        int
	discovery discovery
	known     bool // whether discovery is valid; false for a socket that an earlier run used
}

// outlets are the sockets that a shard sends on: one with a source port of its own, and
// one whose source port is that of the network, for peers that answer nothing else.
// They may be the same.
type outlets struct {
	ipv6  bool
	own   outlet
	fixed outlet
}

func newOutlets(own, fixed int, ipv6 bool) outlets {
	return outlets{ipv6: ipv6, own: outlet{fd: own}, fixed: outlet{fd: fixed}}
}

// prefix returns the first messages of msgs that leave through the same socket with the
// same settings, and that socket, configured for them.
func (o *outlets) prefix(msgs []message) ([]message, *outlet, unix.Errno) {
	out := &o.own
	if msgs[0].fixedPort && o.fixed.fd != o.own.fd {
		out = &o.fixed
	}
	want := msgs[0].discovery()
	if want != out.discovery || !out.known {
		if errno := setDiscovery(out.fd, o.ipv6, want); errno != 0 {
			return nil, out, errno
		}
		out.discovery, out.known = want, true
	}
	for i := range msgs {
		if msgs[i].discovery() != want || msgs[i].fixedPort != msgs[0].fixedPort {
			return msgs[:i], out, 0
		}
	}
	return msgs, out, 0
}

// mmsgSender sends through sendmmsg, trains through UDP_SEGMENT.
type mmsgSender struct {
	outlets
	msgs    []mmsghdr
	control []byte
}

func newMmsgSender(o outlets) *mmsgSender {
	return &mmsgSender{
		outlets: o,
		msgs:    make([]mmsghdr, maxMessages),
		control: make([]byte, maxMessages*sendControlLen),
	}
}

func (s *mmsgSender) send(msgs []message) (int, unix.Errno) {
	msgs, out, errno := s.prefix(msgs)
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
	return sendmmsg(out.fd, s.msgs[:len(msgs)])
}

// batchConn is the sending part of ipv4.PacketConn and ipv6.PacketConn.
type batchConn interface {
	WriteBatch([]ipv4.Message, int) (int, error)
}

// descriptor is a UDP socket in the form that x/net expects, without Go's poller. A
// net.UDPConn registers its socket with the poller, which then wakes a thread of the
// runtime for each datagram that arrives or has been sent, although no goroutine waits.
type descriptor struct {
	*net.UDPConn // nil; having its methods makes this a UDP connection for x/net, which calls only those below
	fd           int
}

// SyscallConn implements syscall.Conn.
func (d descriptor) SyscallConn() (syscall.RawConn, error) { return rawDescriptor(d.fd), nil }

// LocalAddr is the address that x/net puts into its errors.
func (d descriptor) LocalAddr() net.Addr { return (*net.UDPAddr)(nil) }

// rawDescriptor is a syscall.RawConn that calls its functions once, whether or not
// the descriptor is ready.
type rawDescriptor int

func (r rawDescriptor) Control(f func(fd uintptr)) error    { f(uintptr(r)); return nil }
func (r rawDescriptor) Read(f func(fd uintptr) bool) error  { f(uintptr(r)); return nil }
func (r rawDescriptor) Write(f func(fd uintptr) bool) error { f(uintptr(r)); return nil }

// batchSender sends single datagrams through x/net: the fallback of the plain engine.
// It is not used to receive, because ReadBatch allocates an address for each
// datagram.
type batchSender struct {
	outlets
	conn    map[*outlet]batchConn
	msgs    []ipv4.Message
	addrs   []net.UDPAddr
	buffers [][]byte
	control []byte
}

// newBatchSender returns a sender on the sockets of o, which the caller still owns.
func newBatchSender(o outlets, local netip.Addr) *batchSender {
	s := &batchSender{
		outlets: o,
		msgs:    make([]ipv4.Message, maxMessages),
		addrs:   make([]net.UDPAddr, maxMessages),
		buffers: make([][]byte, 0, maxVectors),
		control: make([]byte, maxMessages*sendControlLen),
	}
	for i := range s.msgs {
		s.addrs[i].IP = make(net.IP, local.BitLen()/8)
		s.msgs[i].Addr = &s.addrs[i]
	}
	s.conn = map[*outlet]batchConn{&s.own: batchConnOf(o.own.fd, o.ipv6), &s.fixed: batchConnOf(o.fixed.fd, o.ipv6)}
	return s
}

func batchConnOf(fd int, v6 bool) batchConn {
	if v6 {
		return ipv6.NewPacketConn(descriptor{fd: fd})
	}
	return ipv4.NewPacketConn(descriptor{fd: fd})
}

func (s *batchSender) send(msgs []message) (int, unix.Errno) {
	msgs, out, errno := s.prefix(msgs)
	if errno != 0 {
		return 0, errno
	}
	s.buffers = s.buffers[:0]
	for i := range msgs {
		m, dst := &msgs[i], &s.msgs[i]
		from := len(s.buffers)
		for j := range m.iov {
			s.buffers = append(s.buffers, vectorBytes(&m.iov[j]))
		}
		dst.Buffers = s.buffers[from:]
		at := i * sendControlLen
		dst.OOB = sendControl(s.control[at:at:at+sendControlLen], 0, m.tos, s.ipv6)
		copyAddr(&s.addrs[i], m.peer.Endpoint)
	}
	n, err := s.conn[out].WriteBatch(s.msgs[:len(msgs)], unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
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
