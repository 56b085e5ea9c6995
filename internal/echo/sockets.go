package echo

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Sockets are open sockets of both families, for a caller that sends and receives in its
// own time. They belong to one goroutine.
type Sockets struct {
	v4, v6 *socket // nil: the host lacks the family
	id     uint16
}

// OpenSockets opens them in the network namespace of the calling thread. It needs
// CAP_NET_RAW.
func OpenSockets() (*Sockets, error) {
	s := &Sockets{id: uint16(1 + rand.N(0xffff))}
	var err4, err6 error
	if s.v4, err4 = open(false); err4 == nil {
		s.v4.id = s.id
	}
	if s.v6, err6 = open(true); err6 == nil {
		s.v6.id = s.id
	}
	if err4 != nil && err6 != nil {
		return nil, errors.Join(err4, err6)
	}
	return s, nil
}

// ID returns the identifier of all that Send sends; it is not 0.
func (s *Sockets) ID() uint16 { return s.id }

// Send sends a ping with a sequence number. A ping that the kernel refuses is like one
// without an answer.
func (s *Sockets) Send(p Ping, seq uint16) {
	to := s.v4
	if p.To.Is6() {
		to = s.v6
	}
	if to != nil {
		_ = unix.Sendto(to.fd, to.request(p, seq), 0, sockaddr(p.To))
	}
}

// Receive calls got with the sender and the sequence number of each answer that has
// arrived, up to most for each family. Any host may have sent it.
func (s *Sockets) Receive(most int, got func(from netip.Addr, seq uint16)) {
	for _, of := range []*socket{s.v4, s.v6} {
		for range most {
			if of == nil {
				break
			}
			from, seq, _, err := of.next()
			if err == unix.EAGAIN {
				break
			}
			if err == nil {
				got(from, seq)
			}
		}
	}
}

// Wait waits until an answer may have arrived, but no longer than limit.
func (s *Sockets) Wait(limit time.Duration) error {
	var fds []unix.PollFd
	for _, of := range []*socket{s.v4, s.v6} {
		if of != nil {
			fds = append(fds, unix.PollFd{Fd: int32(of.fd), Events: unix.POLLIN})
		}
	}
	if _, err := unix.Poll(fds, int(limit.Milliseconds())+1); err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for pings: %w", err)
	}
	return nil
}

// Close closes the sockets.
func (s *Sockets) Close() error {
	var errs []error
	for _, one := range []*socket{s.v4, s.v6} {
		if one != nil {
			errs = append(errs, unix.Close(one.fd))
		}
	}
	return errors.Join(errs...)
}
