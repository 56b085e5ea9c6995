package doctor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
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
	headerLen4 = 20 // RFC 791
	headerLen6 = 40 // RFC 8200
	echoHeader = 8  // RFC 792, RFC 4443
	echo4      = 8
	reply4     = 0
	echo6      = 128
	reply6     = 129

	pingAttempts = 4
	pingWait     = 300 * time.Millisecond // wait for answers after each attempt
)

// answers sends pings, repeats those without an answer, and returns which addresses
// answered. pings must contain each address only once.
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
		for part := range slices.Chunk(some, 1<<16) { // there are as many sequence numbers
			if err = s.run(ctx, part, got); err != nil {
				break
			}
		}
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
// this host nor on the way, and any cached path MTU is ignored
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

// run adds the addresses that answer to got. Pings are identified by their sequence
// numbers, since an answer may have another source: a node that forwards IPv6 has
// the first address of each of its subnets as an anycast address (RFC 4291, section
// 2.6.1) and answers with one of its own.
func (s *pinger) run(ctx context.Context, pings []ping, got map[netip.Addr]bool) error {
	for range pingAttempts {
		waiting := make(map[uint16]ping)
		for i, p := range pings {
			if got[p.to] {
				continue
			}
			// The kernel refuses a packet that does not fit the interface
			// (EMSGSIZE) or has no route: both are no answer.
			if unix.Sendto(s.fd, s.request(p, uint16(i)), 0, sockaddr(p.to)) == nil {
				waiting[uint16(i)] = p
			}
		}
		for until := time.Now().Add(pingWait); ; {
			// Answers are read before the clock is checked, so that they count even if
			// the process was not scheduled for long.
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

// receive reads the answers that have arrived.
func (s *pinger) receive(waiting map[uint16]ping, got map[netip.Addr]bool) {
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err != nil {
			return // EAGAIN, or an ICMP error for an earlier ping
		}
		b, size, want := s.buf[:n], n, byte(reply6)
		if s.ipv6 {
			size += headerLen6 // the kernel keeps it
		} else {
			want = reply4
			header := int(s.buf[0]&0xf) * 4
			if len(b) < header {
				continue
			}
			b = b[header:]
		}
		if len(b) < echoHeader || b[0] != want || binary.BigEndian.Uint16(b[4:]) != s.id {
			continue
		}
		seq := binary.BigEndian.Uint16(b[6:])
		if p, ok := waiting[seq]; ok && p.size == size {
			got[p.to] = true
			delete(waiting, seq)
		}
	}
}

// request returns the ICMP message of a ping.
func (s *pinger) request(p ping, seq uint16) []byte {
	b := make([]byte, max(p.size-headers(p.to), echoHeader))
	b[0] = echo4
	if s.ipv6 {
		b[0] = echo6 // the kernel adds the checksum
	}
	binary.BigEndian.PutUint16(b[4:], s.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if !s.ipv6 {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

// checksum returns the checksum of RFC 1071 over an even or odd number of
// bytes.
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

// headers returns the size in bytes of the IP header of packets to an address.
func headers(to netip.Addr) int {
	if to.Is6() {
		return headerLen6
	}
	return headerLen4
}

// widest finds the largest size answered by addresses that answer small packets
// but not those of the given sizes.
func widest(ctx context.Context, pings []ping) (map[netip.Addr]int, error) {
	low, high := map[netip.Addr]int{}, map[netip.Addr]int{}
	for _, p := range pings {
		low[p.to], high[p.to] = smallest, p.size
	}
	for {
		var next []ping
		for a := range low {
			if high[a]-low[a] > 1 {
				next = append(next, ping{a, (low[a] + high[a]) / 2})
			}
		}
		if len(next) == 0 {
			return low, nil
		}
		slices.SortFunc(next, func(a, b ping) int { return strings.Compare(a.to.String(), b.to.String()) })
		got, err := answers(ctx, next)
		if err != nil {
			return nil, err
		}
		for _, p := range next {
			if got[p.to] {
				low[p.to] = p.size
			} else {
				high[p.to] = p.size
			}
		}
	}
}
