package fastpath

import (
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

const (
	// maxMessages is how many messages one sendmmsg takes.
	maxMessages = 64
	// maxVectors is how many iovecs a batch has: a header and a payload for
	// each packet of a few super-packets.
	maxVectors = 1024
	// slabSize is the room for packet headers in a batch, in bytes.
	slabSize = 64 << 10
	// maxTrain4 and maxTrain6 are the payload that one UDP datagram, and so
	// one GSO send, can have over IPv4 and IPv6: 65,535 less the headers
	// that the length field counts.
	maxTrain4 = 65507
	maxTrain6 = 65527
	// bufferRetries is how often a send is repeated when the kernel has no
	// buffer for it.
	bufferRetries = 3
)

// sends gathers packets into messages and sends them. Consecutive packets to
// one peer, of one size and one ECN field, become one message, which GSO sends
// with one pass through the stack; the last of a train may be shorter.
//
// Payloads are borrowed until flush has returned. A sends belongs to the TX
// thread of its shard.
type sends struct {
	to       sender
	fallback fallback
	segments int // packets in a message: 1 without GSO
	maxTrain int

	msgs []message
	iov  []unix.Iovec
	slab []byte

	c *metrics.Direction
}

// fallback handles messages that the kernel has refused.
type fallback interface {
	// gsoRefused is told that GSO does not work on the socket.
	gsoRefused(errno unix.Errno)
	// tooBig is told of the packet in iov, which does not fit the path to
	// peer. It reports whether it sent the packet by other means.
	tooBig(peer *Peer, m *message) bool
	// wait blocks until the socket may take more. It reports false when the
	// engine stops.
	wait() bool
}

func newSends(to sender, fb fallback, segments int, ipv6 bool, c *metrics.Direction) *sends {
	s := &sends{
		to: to, fallback: fb, segments: segments, maxTrain: maxTrain4,
		msgs: make([]message, 0, maxMessages),
		iov:  make([]unix.Iovec, 0, maxVectors),
		slab: make([]byte, 0, slabSize),
		c:    c,
	}
	if ipv6 {
		s.maxTrain = maxTrain6
	}
	return s
}

// header returns n bytes for the header of the next packet; they live until
// the batch is flushed.
func (s *sends) header(n int) []byte {
	if len(s.slab)+n > cap(s.slab) || len(s.iov)+2 > cap(s.iov) || len(s.msgs) == cap(s.msgs) {
		s.flush()
	}
	at := len(s.slab)
	s.slab = s.slab[:at+n]
	return s.slab[at : at+n : at+n]
}

// add puts the packet made of header and payload into the batch. header is not
// empty; payload may be.
func (s *sends) add(peer *Peer, tos uint8, header, payload []byte) {
	if len(s.iov)+2 > cap(s.iov) || len(s.msgs) == cap(s.msgs) {
		s.flush()
	}
	size := len(header) + len(payload)
	m := s.train(peer, tos, size)
	from := len(s.iov)
	s.iov = append(s.iov, vector(header))
	if len(payload) > 0 {
		s.iov = append(s.iov, vector(payload))
	}
	if m == nil {
		s.msgs = append(s.msgs, message{
			peer: peer, tos: tos, segment: size, bytes: size, packets: 1, iov: s.iov[from:],
		})
		return
	}
	m.iov = m.iov[:len(m.iov)+len(s.iov)-from]
	m.bytes += size
	m.packets++
	m.closed = size < m.segment
}

// train returns the last message if a packet may join it, else nil.
func (s *sends) train(peer *Peer, tos uint8, size int) *message {
	if len(s.msgs) == 0 {
		return nil
	}
	m := &s.msgs[len(s.msgs)-1]
	if m.closed || m.peer != peer || m.tos != tos || size > m.segment ||
		m.packets >= s.segments || m.bytes+size > s.maxTrain {
		return nil
	}
	return m
}

// flush sends the batch. When it returns, the batch is empty and every packet
// of it was sent once or counted as dropped, unless the engine stops.
func (s *sends) flush() {
	retries := 0
	for next := 0; next < len(s.msgs); {
		m := &s.msgs[next]
		if m.packets > 1 && s.segments == 1 {
			s.sendSingly(m) // gathered before GSO was refused
			next++
			continue
		}
		n, errno := s.to.send(s.msgs[next:s.sendable(next)])
		if n > 0 {
			s.c.SockCalls.Add(1)
			for i := range n {
				s.sent(&s.msgs[next+i])
			}
			next, retries = next+n, 0
			continue
		}
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if s.fallback.wait() {
				continue
			}
			next = len(s.msgs) // the engine stops
			continue
		case unix.ENOBUFS, unix.ENOMEM:
			if retries++; retries <= bufferRetries {
				continue
			}
			s.c.Drop(metrics.DropNoBuffer, m.packets)
		case unix.EMSGSIZE, unix.EINVAL, unix.EIO:
			s.refused(m, errno)
		default:
			// The peer cannot be reached or is filtered (ENETUNREACH,
			// EPERM, …): its packets are lost, those of others are not.
			s.c.Drop(metrics.DropSendError, m.packets)
		}
		next, retries = next+1, 0
	}
	s.msgs, s.iov, s.slab = s.msgs[:0], s.iov[:0], s.slab[:0]
}

// sendable returns the end of the messages from next on that can go to the
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

// sent counts a message that the kernel took.
func (s *sends) sent(m *message) {
	s.c.Packets.Add(uint64(m.packets))
	s.c.Bytes.Add(uint64(m.bytes))
	s.c.Datagrams.Add(1)
	s.c.Segments.Observe(m.packets)
	m.peer.Traffic.TXPackets.Add(uint64(m.packets))
	m.peer.Traffic.TXBytes.Add(uint64(m.bytes))
}

// refused handles a message that does not fit the path or that the kernel
// cannot segment. A GSO send fails as a whole, so its packets are sent again
// one by one, none twice. That also tells the two apart, for which kernels
// use the same numbers: if one goes through, the segments did fit, and GSO is
// at fault (EIO: the device has no transmit checksum; EINVAL: xfrm and older
// kernels).
func (s *sends) refused(m *message, errno unix.Errno) {
	if m.packets == 1 {
		s.single(m, errno)
		return
	}
	if sent := s.sendSingly(m); sent == m.packets && s.segments > 1 && errno != unix.EMSGSIZE {
		s.segments = 1
		s.fallback.gsoRefused(errno)
	}
}

// sendSingly sends the packets of m one by one and returns how many the
// kernel took as they are.
func (s *sends) sendSingly(m *message) (sent int) {
	one := [1]message{}
	iov := m.iov
	for range m.packets {
		size, n := 0, 0
		for n < len(iov) && size < m.segment {
			size += int(iov[n].Len)
			n++
		}
		one[0] = message{peer: m.peer, tos: m.tos, segment: size, bytes: size, packets: 1, iov: iov[:n]}
		iov = iov[n:]
		if s.sendOne(&one) {
			sent++
		}
	}
	return sent
}

// sendOne sends a message of one packet, with the retries of flush.
func (s *sends) sendOne(one *[1]message) bool {
	for retries := 0; ; {
		n, errno := s.to.send(one[:])
		if n > 0 {
			s.c.SockCalls.Add(1)
			s.sent(&one[0])
			return true
		}
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if s.fallback.wait() {
				continue
			}
		case unix.ENOBUFS, unix.ENOMEM:
			if retries++; retries <= bufferRetries {
				continue
			}
		}
		s.single(&one[0], errno)
		return false
	}
}

// single disposes of a message of one packet that the kernel has refused with
// errno.
func (s *sends) single(m *message, errno unix.Errno) {
	switch errno {
	case unix.EMSGSIZE:
		if s.fallback.tooBig(m.peer, m) {
			s.sent(m)
			return
		}
		s.c.Drop(metrics.DropTooBig, 1)
	case unix.ENOBUFS, unix.ENOMEM:
		s.c.Drop(metrics.DropNoBuffer, 1)
	default:
		s.c.Drop(metrics.DropSendError, 1)
	}
}
