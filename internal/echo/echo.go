// Package echo sends ICMP echo requests that must not be fragmented, to many addresses
// of both families at once. It needs CAP_NET_RAW, works in the network namespace of
// the calling thread, and starts no goroutines.
package echo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// Ping is an ICMP echo request to an address. Size is in bytes, IP header included.
type Ping struct {
	To   netip.Addr
	Size int
}

// Smallest is the size of a packet that fits every path.
const Smallest = 64

const (
	headerLen4 = 20  // RFC 791
	headerLen6 = 40  // RFC 8200
	reply4     = 0   // RFC 792
	reply6     = 129 // RFC 4443

	// HeaderLen is the size of the header of an echo request (RFC 792, RFC 4443).
	HeaderLen = 8

	attempts    = 4
	attemptWait = 300 * time.Millisecond // for answers, after each attempt
)

// Once sends each ping once, and returns the round-trip times of those that are
// answered within wait.
func Once(ctx context.Context, pings []Ping, wait time.Duration) (map[Ping]time.Duration, error) {
	got := make(map[Ping]time.Duration)
	err := eachFamily(pings, func(s *socket, pings []Ping) error { return s.run(ctx, pings, wait, got) })
	return got, err
}

// Answers sends pings, repeats those without an answer, and returns which addresses
// answered. pings must contain each address only once.
func Answers(ctx context.Context, pings []Ping) (map[netip.Addr]bool, error) {
	got := make(map[Ping]time.Duration)
	err := eachFamily(pings, func(s *socket, pings []Ping) error {
		for range attempts {
			if err := s.run(ctx, pings, attemptWait, got); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	addrs := make(map[netip.Addr]bool)
	for p := range got {
		addrs[p.To] = true
	}
	return addrs, nil
}

// eachFamily calls run for the valid addresses of each family, with a socket for it.
func eachFamily(pings []Ping, run func(*socket, []Ping) error) error {
	for _, ipv6 := range []bool{false, true} {
		some := slices.DeleteFunc(slices.Clone(pings), func(p Ping) bool { return !p.To.IsValid() || p.To.Is6() != ipv6 })
		if len(some) == 0 {
			continue
		}
		s, err := open(ipv6)
		if err != nil {
			return err
		}
		for part := range slices.Chunk(some, 1<<16) { // there are as many sequence numbers
			if err = run(s, part); err != nil {
				break
			}
		}
		unix.Close(s.fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// socket is a raw ICMP socket of one address family.
type socket struct {
	fd   int
	ipv6 bool
	id   uint16 // random, so that late answers to another socket are not taken for its own
	buf  []byte
}

// open needs CAP_NET_RAW. Its packets are never fragmented, neither by
// this host nor on the way, and any cached path MTU is ignored
// (IP_PMTUDISC_PROBE, ip(7)).
func open(ipv6 bool) (*socket, error) {
	s := &socket{ipv6: ipv6, id: uint16(rand.Uint32()), buf: make([]byte, 1<<16)}
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
			unix.SetsockoptInt(s.fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1),
			unix.SetsockoptICMPv6Filter(s.fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, onlyReplies6()))
	} else {
		err = errors.Join(unix.SetsockoptInt(s.fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE),
			unix.SetsockoptInt(s.fd, unix.SOL_RAW, unix.ICMP_FILTER, ^(1<<reply4))) // a bit for each type to drop
	}
	if err != nil {
		unix.Close(s.fd)
		return nil, fmt.Errorf("set up ICMP socket: %w", err)
	}
	return s, nil
}

// onlyReplies6 drops every type of ICMPv6 message but one (RFC 3542 §3.2).
func onlyReplies6() *unix.ICMPv6Filter {
	var f unix.ICMPv6Filter
	for i := range f.Data {
		f.Data[i] = ^uint32(0)
	}
	f.Data[reply6/32] &^= 1 << (reply6 % 32)
	return &f
}

// sent is a ping on its way.
type sent struct {
	Ping
	at time.Time
}

// run sends the pings that are not in got, once, and adds those that are answered
// within wait. Pings are identified by their sequence numbers, since an answer may
// have another source: a node that forwards IPv6 has the first address of each of its
// subnets as an anycast address (RFC 4291, section 2.6.1) and answers with one of its
// own.
func (s *socket) run(ctx context.Context, pings []Ping, wait time.Duration, got map[Ping]time.Duration) error {
	waiting := make(map[uint16]sent)
	for i, p := range pings {
		if _, ok := got[p]; ok {
			continue
		}
		now := time.Now()
		// The kernel refuses a packet that does not fit the interface
		// (EMSGSIZE) or has no route: both are no answer.
		if unix.Sendto(s.fd, s.request(p, uint16(i)), 0, sockaddr(p.To)) == nil {
			waiting[uint16(i)] = sent{p, now}
		}
	}
	for until := time.Now().Add(wait); ; {
		// Answers are read before the clock is checked, so that they count even if
		// the process was not scheduled for long.
		s.receive(waiting, got)
		left := time.Until(until)
		if len(waiting) == 0 || left <= 0 {
			return nil
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

// receive reads the answers that have arrived.
func (s *socket) receive(waiting map[uint16]sent, got map[Ping]time.Duration) {
	for {
		_, seq, size, err := s.next()
		if err != nil {
			return
		}
		if p, ok := waiting[seq]; ok && p.Size == size {
			got[p.Ping] = time.Since(p.at)
			delete(waiting, seq)
		}
	}
}

// next returns the sequence number and the size of the next answer that has arrived.
// The error is EAGAIN if there is none, or an ICMP error for an earlier ping.
func (s *socket) next() (from netip.Addr, seq uint16, size int, err error) {
	for {
		n, sender, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err != nil {
			return from, 0, 0, err
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
		if len(b) >= HeaderLen && b[0] == want && binary.BigEndian.Uint16(b[4:]) == s.id {
			return addrOf(sender), binary.BigEndian.Uint16(b[6:]), size, nil
		}
	}
}

// addrOf returns the address in sa.
func addrOf(sa unix.Sockaddr) netip.Addr {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr)
	}
	return netip.Addr{}
}

// request returns the ICMP message of a ping.
func (s *socket) request(p Ping, seq uint16) []byte {
	m := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: int(s.id), Seq: int(seq), Data: make([]byte, max(p.Size-IPHeaderLen(p.To)-HeaderLen, 0)),
	}}
	if s.ipv6 {
		m.Type = ipv6.ICMPTypeEchoRequest // the kernel adds the checksum (RFC 3542 §3.1)
	}
	b, err := m.Marshal(nil)
	if err != nil {
		panic("echo: " + err.Error()) // an echo request has nothing that could be invalid
	}
	return b
}

func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is6() {
		return &unix.SockaddrInet6{Addr: a.As16()}
	}
	return &unix.SockaddrInet4{Addr: a.As4()}
}

// IPHeaderLen returns the size in bytes of the IP header of packets to an address.
func IPHeaderLen(to netip.Addr) int {
	if to.Is6() {
		return headerLen6
	}
	return headerLen4
}

// Widest finds the largest size answered by addresses that answer small packets
// but not those of the given sizes.
func Widest(ctx context.Context, pings []Ping) (map[netip.Addr]int, error) {
	low, high := map[netip.Addr]int{}, map[netip.Addr]int{}
	for _, p := range pings {
		low[p.To], high[p.To] = Smallest, p.Size
	}
	for {
		var next []Ping
		for a := range low {
			if high[a]-low[a] > 1 {
				next = append(next, Ping{a, (low[a] + high[a]) / 2})
			}
		}
		if len(next) == 0 {
			return low, nil
		}
		slices.SortFunc(next, func(a, b Ping) int { return strings.Compare(a.To.String(), b.To.String()) })
		got, err := Answers(ctx, next)
		if err != nil {
			return nil, err
		}
		for _, p := range next {
			if got[p.To] {
				low[p.To] = p.Size
			} else {
				high[p.To] = p.Size
			}
		}
	}
}
