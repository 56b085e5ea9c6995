package connectivity

import (
	"context"
	"crypto/subtle"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cookieLen = 16
	// tcpBytes is what a connection carries in each direction after the cookie.
	tcpBytes = 64 << 10
	// connections bounds those that are served at the same time.
	connections = 64
	// connectionTime bounds how long one may take.
	connectionTime = time.Minute
	// datagrams bounds those that are echoed in one test.
	datagrams = 1 << 16
)

// server echoes to those who know the cookie.
type server struct {
	cookie []byte
	left   atomic.Int64 // datagrams

	ctx     context.Context
	serving sync.WaitGroup
	closers []io.Closer
}

func newServer(ctx context.Context, cookie []byte) *server {
	s := &server{cookie: cookie, ctx: ctx}
	s.left.Store(datagrams)
	return s
}

// listen serves at an address and returns the ports of TCP and UDP.
func (s *server) listen(addr netip.Addr, port uint16) (tcp, udp uint16, err error) {
	at := netip.AddrPortFrom(addr, port).String()
	lc := net.ListenConfig{Control: neverFragment}
	l, err := lc.Listen(s.ctx, "tcp", at)
	if err != nil {
		return 0, 0, err
	}
	s.closers = append(s.closers, l)
	p, err := lc.ListenPacket(s.ctx, "udp", at)
	if err != nil {
		return 0, 0, err
	}
	s.closers = append(s.closers, p)
	s.serving.Go(func() { s.accept(l) })
	s.serving.Go(func() { s.echo(p.(*net.UDPConn)) })
	return l.Addr().(*net.TCPAddr).AddrPort().Port(), p.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// close ends all that listen started.
func (s *server) close() {
	for _, c := range s.closers {
		_ = c.Close()
	}
	s.serving.Wait()
}

func (s *server) accept(l net.Listener) {
	slots := make(chan struct{}, connections)
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed, or there are no descriptors left; the test will show it
		}
		slots <- struct{}{}
		s.serving.Go(func() {
			defer func() { <-slots }()
			s.serve(c)
		})
	}
}

// serve echoes what comes after the right cookie.
func (s *server) serve(c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { _ = c.Close() })()
	_ = c.SetDeadline(time.Now().Add(connectionTime))
	var cookie [cookieLen]byte
	if _, err := io.ReadFull(c, cookie[:]); err == nil && s.knows(cookie[:]) {
		_, _ = io.CopyN(c, c, tcpBytes) // the other end reports what is missing
	}
}

// echo echoes datagrams that begin with the right cookie.
func (s *server) echo(p *net.UDPConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFromUDPAddrPort(buf)
		switch {
		case err != nil && s.ctx.Err() == nil && !isClosed(err):
			continue // an ICMP error for an earlier datagram
		case err != nil:
			return
		case n >= cookieLen && s.knows(buf[:cookieLen]) && s.left.Add(-1) >= 0:
			_, _ = p.WriteToUDPAddrPort(buf[:n], from)
		}
	}
}

func (s *server) knows(cookie []byte) bool { return subtle.ConstantTimeCompare(cookie, s.cookie) == 1 }

// neverFragment makes a socket send no fragments and ignore what the kernel has learnt of
// path MTUs (IP_PMTUDISC_PROBE, ip(7)). It does not concern TCP's segments.
func neverFragment(network, _ string, c syscall.RawConn) error {
	var err error
	ctrlErr := c.Control(func(fd uintptr) {
		switch network {
		case "udp4":
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		case "udp6":
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
		}
	})
	if ctrlErr != nil {
		return ctrlErr
	}
	return err
}
