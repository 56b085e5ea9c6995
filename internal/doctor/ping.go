package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ping is an ICMP echo request of a size in bytes, IP header included, that must
// not be fragmented.
type ping struct {
	to   netip.Addr
	size int
}

const (
	echoHeader = 8 // RFC 792, RFC 4443
	echo4      = 8
	reply4     = 0
	echo6      = 128
	reply6     = 129

	pingAttempts = 4
	pingWait     = 300 * time.Millisecond // for answers, after each attempt
)

// answers sends pings, those without an answer again, and returns who has
// answered. An address stands in pings once.
func answers(ctx context.Context, pings []ping) (map[netip.Addr]bool, error) {
	got := make(map[netip.Addr]bool)
	for _, ipv6 := range []bool{false, true} {
		var some []ping
		for _, p := range pings {
			if p.to.Is6() == ipv6 && p.to.IsValid() {
				some = append(some, p)
			}
		}
		if len(some) == 0 {
			continue
		}
		s, err := openPinger(ipv6)
		if err != nil {
			return nil, err
		}
		err = s.run(ctx, some, got)
		unix.Close(s.fd)
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// pinger is a raw ICMP socket of one address family.
type pinger struct {
	fd   int
	ipv6 bool
	id   uint16
	buf  []byte
}

// openPinger needs CAP_NET_RAW. Its packets are never fragmented, neither by
// this host nor on their way, and no remembered path MTU is heeded
// (IP_PMTUDISC_PROBE, ip(7)).
func openPinger(ipv6 bool) (*pinger, error) {
	s := &pinger{ipv6: ipv6, id: uint16(os.Getpid()), buf: make([]byte, 1<<16)}
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if ipv6 {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	var err error
	s.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket: %w; run as root", err)
	}
	if ipv6 {
		err = errors.Join(unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE),
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	} else {
		err = unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	}
	if err != nil {
		unix.Close(s.fd)
		return nil, fmt.Errorf("forbid fragments of pings: %w", err)
	}
	return s, nil
}

// run adds to got who has answered.
func (s *pinger) run(ctx context.Context, pings []ping, got map[netip.Addr]bool) error {
	for range pingAttempts {
		waiting := make(map[netip.Addr]int)
		for _, p := range pings {
			if got[p.to] {
				continue
			}
			// A packet that does not fit the interface is refused at once
			// (EMSGSIZE), and one without a route, too: no answer, both.
			if unix.Sendto(s.fd, s.request(p), 0, sockaddr(p.to)) == nil {
				waiting[p.to] = p.size
			}
		}
		for until := time.Now().Add(pingWait); ; {
			// Before the clock is looked at: who was not let run for long
			// finds the answers here.
			s.receive(waiting, got)
			left := time.Until(until)
			if len(waiting) == 0 || left <= 0 {
				break
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
				return fmt.Errorf("wait for pings: %w", err)
			}
		}
	}
	return nil
}

// receive reads all answers that are there.
func (s *pinger) receive(waiting map[netip.Addr]int, got map[netip.Addr]bool) {
	for {
		n, from, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err != nil {
			return // EAGAIN, or an ICMP error for an earlier ping
		}
		var a netip.Addr
		b, size, want := s.buf[:n], n, byte(reply6)
		switch sa := from.(type) {
		case *unix.SockaddrInet6:
			a = netip.AddrFrom16(sa.Addr)
			size += headers(a) // the kernel keeps it
		case *unix.SockaddrInet4:
			a, want = netip.AddrFrom4(sa.Addr), reply4
			if len(b) < headers(a) {
				continue
			}
			header := int(b[0]&0xf) * 4
			if len(b) < header {
				continue
			}
			b = b[header:]
		}
		if len(b) < echoHeader || b[0] != want || binary.BigEndian.Uint16(b[4:]) != s.id || waiting[a] != size {
			continue
		}
		got[a] = true
		delete(waiting, a)
	}
}

// request returns the ICMP message of a ping.
func (s *pinger) request(p ping) []byte {
	b := make([]byte, max(p.size-headers(p.to), echoHeader))
	b[0] = echo4
	if s.ipv6 {
		b[0] = echo6 // the kernel adds the checksum
	}
	binary.BigEndian.PutUint16(b[4:], s.id)
	if !s.ipv6 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum is that of RFC 1071, over an even or odd number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}
