package fastpath

import (
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

const (
	// maxMessages is how many messages one sendmmsg accepts.
	maxMessages = 64
	// maxVectors is how many iovecs a batch has: one for each packet if no two of them
	// are adjacent in memory.
	maxVectors = 1024
	// maxTrain4 and maxTrain6 are the largest payloads of one UDP datagram, and so
	// of one GSO send, over IPv4 and IPv6: 65,535 less the headers
	// that the length field counts.
	maxTrain4 = 65507
	maxTrain6 = 65527
	// bufferRetries is how often a send is repeated if the kernel has no
	// buffer for it.
	bufferRetries = 3
)

// sends gathers packets into messages and sends them. Consecutive packets to
// one peer, of one size and one ECN field, become one message, which GSO sends
// in one pass through the stack; the last of a train may be shorter. Packets that
// are adjacent in memory share one iovec: the kernel copies long pieces much faster
// than a header and a payload for each packet.
//
// Packets are borrowed until flush or hold has returned. A sends belongs to the TX
// thread of its shard.
type sends struct {
	to         sender
	exceptions *exceptions // for messages that the kernel refuses
	segments   int         // packets in a message: 1 without GSO
	maxTrain   int

	msgs []message
	iov  []unix.Iovec

	one  [1]message // a packet of a message that is sent by itself
	only [1]unix.Iovec
	kept []byte // buffer for the packets of the train that hold keeps; nil without GSO

	tap     *tap
	c       *metrics.Direction
	stopped bool  // the engine is stopping: the rest of the batch is discarded
	failed  error // waiting for the socket failed, which ends the engine
}

func newSends(to sender, x *exceptions, segments int, ipv6 bool, c *metrics.Direction) *sends {
	s := &sends{
		to: to, exceptions: x, segments: segments, maxTrain: maxTrain4,
		msgs: make([]message, 0, maxMessages),
		iov:  make([]unix.Iovec, 0, maxVectors),
		tap:  &x.shard.tap,
		c:    c,
	}
	if ipv6 {
		s.maxTrain = maxTrain6
	}
	if segments > 1 {
		s.kept = make([]byte, s.maxTrain)
	}
	return s
}

// way is how a packet is sent, apart from its destination.
type way struct {
	tos      uint8 // of the datagram
	fragment bool  // see message
	wide     bool  // it is known not to fit the path
	direct   bool  // see message
}

// add adds the packet pkt to the batch. If it directly follows the previous packet in
// memory, both must be in the same allocation.
func (s *sends) add(peer *Peer, w way, pkt []byte) { s.addTrain(peer, w, pkt, len(pkt)) }

// addTrain adds the packets that b consists of, as add does. Each has size bytes, except
// the last, which may be shorter.
func (s *sends) addTrain(peer *Peer, w way, b []byte, size int) {
	if w.wide {
		for pkt := range slices.Chunk(b, size) {
			s.wide(peer, w, pkt)
		}
		return
	}
	for fixed := peer.FixedPort(); len(b) > 0; {
		if len(s.iov) == cap(s.iov) || len(s.msgs) == cap(s.msgs) {
			s.flush()
		}
		size = min(size, len(b))
		m := s.train(peer, w, fixed, size)
		if m == nil {
			at := len(s.msgs)
			s.msgs = append(s.msgs, message{
				peer: peer, tos: w.tos, fragment: w.fragment, direct: w.direct, fixedPort: fixed,
				segment: size, iov: s.iov[len(s.iov):],
			})
			m = &s.msgs[at]
		}
		n := s.room(m, len(b), size)
		s.join(m, b[:n:n])
		m.packets += (n + size - 1) / size
		m.closed = n%m.segment != 0
		b = b[n:]
	}
}

// room returns how many of n bytes may join m. They consist of packets of size bytes, of
// which at least the first may join; the last may be shorter.
func (s *sends) room(m *message, n, size int) int {
	if size < m.segment {
		return size // none may follow
	}
	packets := min(s.segments-m.packets, (s.maxTrain-m.bytes)/size)
	return min(n, max(packets, 1)*size)
}

// join appends the bytes b to m, the last message.
func (s *sends) join(m *message, b []byte) {
	m.bytes += len(b)
	if at := len(m.iov); at > 0 {
		if last := &m.iov[at-1]; follows(last, b) {
			last.SetLen(int(last.Len) + len(b))
			return
		}
	}
	s.iov = append(s.iov, vector(b))
	m.iov = m.iov[:len(m.iov)+1]
}

// follows reports whether pkt directly follows v in memory.
func follows(v *unix.Iovec, pkt []byte) bool {
	return uintptr(unsafe.Pointer(v.Base))+uintptr(v.Len) == uintptr(unsafe.Pointer(unsafe.SliceData(pkt)))
}

// wide handles a packet that is known not to fit the path as if the kernel had refused it,
// after it has sent the packets that were added before.
func (s *sends) wide(peer *Peer, w way, pkt []byte) {
	s.flush()
	if s.stopped {
		return
	}
	s.only[0] = vector(pkt)
	s.one[0] = message{peer: peer, tos: w.tos, fixedPort: peer.FixedPort(), segment: len(pkt), bytes: len(pkt), packets: 1, iov: s.only[:]}
	s.lost(&s.one[0], unix.EMSGSIZE)
}

// train returns the last message if a packet may join it, and nil otherwise.
func (s *sends) train(peer *Peer, w way, fixed bool, size int) *message {
	if len(s.msgs) == 0 {
		return nil
	}
	m := &s.msgs[len(s.msgs)-1]
	if m.closed || m.peer != peer || m.tos != w.tos || m.fragment != w.fragment || m.direct != w.direct || m.fixedPort != fixed || size > m.segment ||
		m.packets >= s.segments || m.bytes+size > s.maxTrain {
		return nil
	}
	return m
}

// flush sends the batch. When it returns, the batch is empty and every packet
// of it was sent once or counted as dropped, unless the engine is stopping.
func (s *sends) flush() {
	s.tap.stamp()
	for next := 0; next < len(s.msgs) && !s.stopped; {
		m := &s.msgs[next]
		if m.packets > 1 && s.segments == 1 {
			s.sendSingly(m) // added before GSO was refused
			next++
			continue
		}
		n, errno := s.transmit(s.msgs[next:s.sendable(next)])
		if n == 0 {
			s.refused(m, errno)
			n = 1
		}
		next += n
	}
	s.msgs, s.iov = s.msgs[:0], s.iov[:0]
}

// hold is flush in the middle of a bulk transfer: if the last message is a train that more
// packets may join, hold keeps it for the next batch, with a copy of its packets. A
// super-packet of 64 KiB is slightly more than fits one train, and the message for the rest
// costs the kernel nearly as much as a whole train.
func (s *sends) hold() {
	last := len(s.msgs) - 1
	if last < 0 || !s.open(&s.msgs[last]) {
		s.flush()
		return
	}
	m := s.msgs[last]
	s.msgs = s.msgs[:last]
	s.flush()
	if s.stopped {
		return
	}
	n := 0
	for i := range m.iov {
		n += copy(s.kept[n:], vectorBytes(&m.iov[i]))
	}
	s.iov = append(s.iov, vector(s.kept[:n]))
	m.iov = s.iov
	s.msgs = append(s.msgs, m)
}

// open reports whether m is a train that has room for another packet.
func (s *sends) open(m *message) bool {
	return !m.closed && m.packets > 1 && m.packets < s.segments && m.bytes+m.segment <= s.maxTrain
}

// transmit sends a prefix of msgs, waits and retries if that may help, and counts what
// was sent. It returns how many messages the kernel accepted, or why it accepted none.
func (s *sends) transmit(msgs []message) (int, unix.Errno) {
	for retries := 0; ; {
		n, errno := s.to.send(msgs)
		if n > 0 {
			s.c.SockCalls.Add(1)
			for i := range n {
				s.sent(&msgs[i])
			}
			return n, 0
		}
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			ready, err := s.exceptions.wait(msgs[0].fixedPort)
			if ready {
				continue
			}
			s.stopped, s.failed = true, err
		case unix.ENOBUFS, unix.ENOMEM:
			if retries++; retries <= bufferRetries {
				continue
			}
		}
		return 0, errno
	}
}

// sendable returns the end of the messages from next on that can be passed to the
// kernel in one call.
func (s *sends) sendable(next int) int {
	if s.segments > 1 {
		return len(s.msgs)
	}
	for i := next; i < len(s.msgs); i++ {
		if s.msgs[i].packets > 1 {
			return i
		}
	}
	return len(s.msgs)
}

// sent counts a message that the kernel accepted.
func (s *sends) sent(m *message) {
	s.c.Packets.Add(uint64(m.packets))
	s.c.Bytes.Add(uint64(m.bytes))
	s.c.Datagrams.Add(1)
	s.c.Segments.Observe(m.packets)
	m.peer.Traffic.TXPackets.Add(uint64(m.packets))
	m.peer.Traffic.TXBytes.Add(uint64(m.bytes))
	if s.tap.on() {
		s.record(m, forwarded)
	}
}

// record passes the packets of a message to the capture.
func (s *sends) record(m *message, drop metrics.Drop) {
	for pkt := range m.each() {
		s.tap.record(true, drop, m.peer.addr(), pkt)
	}
}

// refused handles a message that the kernel did not accept.
//
// A GSO send fails as a whole, either because a segment is too big for the path or
// because the kernel cannot segment here, with the same error numbers for both.
// Its packets are then sent one by one, none of them twice. If all of them succeed, the
// segments did fit, and GSO is at fault (EIO: the device has no transmit
// checksum; EINVAL: xfrm and older kernels). That does not follow if a packet
// may be fragmented, since a segment may not be.
func (s *sends) refused(m *message, errno unix.Errno) {
	if s.stopped {
		return
	}
	divisible := errno == unix.EMSGSIZE || errno == unix.EINVAL || errno == unix.EIO
	if m.packets == 1 || !divisible {
		s.lost(m, errno)
		return
	}
	if sent := s.sendSingly(m); sent == m.packets && s.segments > 1 && errno != unix.EMSGSIZE && !m.fragment {
		s.segments = 1
		s.exceptions.gsoRefused(errno)
	}
}

// sendSingly sends the packets of m one by one and returns how many of them the
// kernel accepted unfragmented.
func (s *sends) sendSingly(m *message) (sent int) {
	for pkt := range m.each() {
		s.only[0] = vector(pkt)
		s.one[0] = *m
		one := &s.one[0]
		one.segment, one.bytes, one.packets, one.iov = len(pkt), len(pkt), 1, s.only[:]
		if n, errno := s.transmit(s.one[:]); n == 1 {
			sent++
		} else if !s.stopped {
			s.lost(one, errno)
		}
	}
	return sent
}

// lost handles a message that the kernel did not accept and that is not split into its
// packets: it is sent in fragments, or its packets are counted as dropped.
func (s *sends) lost(m *message, errno unix.Errno) {
	reason := metrics.DropSendError // unreachable, filtered (ENETUNREACH, EPERM, …)
	switch errno {
	case unix.EMSGSIZE:
		if s.exceptions.tooBig(m) && s.inFragments(m) {
			return
		}
		reason = metrics.DropTooBig
	case unix.ENOBUFS, unix.ENOMEM:
		reason = metrics.DropNoBuffer
	}
	s.c.Drop(reason, m.packets)
	if s.tap.on() {
		s.record(m, reason)
	}
}

// inFragments sends the packet of m, which is too big for the path, in a
// fragmented datagram. It reports whether the kernel accepted it.
func (s *sends) inFragments(m *message) bool {
	if m.fragment {
		return false // this is what the kernel has refused
	}
	s.one[0] = *m
	s.one[0].fragment = true
	n, _ := s.transmit(s.one[:])
	return n == 1
}
