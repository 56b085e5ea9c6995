// Package pinger measures the effect of a disturbance: it sends ICMP echo requests at a
// fixed pace, records the time of each request and of its answer, and determines how many
// were lost and how long nothing arrived.
//
// Nothing is written while it measures: a terminal or pipe that is read too slowly
// would stop the measurement and look like silence on the network. The time of an
// answer is the kernel's timestamp (SO_TIMESTAMPNS, socket(7)), so it does not matter when
// this process reads it.
package pinger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// headerLen is the length of an ICMP echo header; the number of the request, 8 bytes,
// follows it.
const (
	headerLen  = 8
	messageLen = headerLen + 8
)

// look is how often the receiver checks whether it has been stopped.
const look = 50 * time.Millisecond

// Pinger sends echo requests until it is stopped.
type Pinger struct {
	fd       int
	to       unix.Sockaddr
	id       uint16    // of its requests
	request  icmp.Type // the echo types of the address family
	reply    byte
	interval time.Duration

	sending, receiving atomic.Bool
	sent, received     chan error // receive the outcome of send and receive

	mu      sync.Mutex
	record  Record
	missing int // requests without an answer
}

// Start begins to ping an address at the given interval, through a raw socket in the
// network namespace of the calling thread. It requires CAP_NET_RAW.
func Start(to netip.Addr, interval time.Duration) (*Pinger, error) {
	p := &Pinger{interval: interval, id: uint16(rand.Uint32()), sent: make(chan error, 1), received: make(chan error, 1)}
	family, protocol := unix.AF_INET, unix.IPPROTO_ICMP
	if to = to.Unmap(); to.Is4() {
		p.to, p.request, p.reply = &unix.SockaddrInet4{Addr: to.As4()}, ipv4.ICMPTypeEcho, 0
	} else {
		family, protocol = unix.AF_INET6, unix.IPPROTO_ICMPV6
		p.to, p.request, p.reply = &unix.SockaddrInet6{Addr: to.As16()}, ipv6.ICMPTypeEchoRequest, 129
	}
	var err error
	if p.fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return nil, fmt.Errorf("ping %s: open raw socket: %w", to, err)
	}
	timeout := unix.NsecToTimeval(look.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20),
		unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ping %s: %w", to, err), unix.Close(p.fd))
	}
	p.sending.Store(true)
	p.receiving.Store(true)
	go func() { p.sent <- p.send() }()
	go func() { p.received <- p.receive() }()
	return p, nil
}

// Stop stops sending, waits for missing answers for at most wait, and returns the record.
// It must be called once.
func (p *Pinger) Stop(wait time.Duration) (Record, error) {
	p.sending.Store(false)
	err := <-p.sent
	for late := time.Now().Add(wait); p.Missing() > 0 && time.Now().Before(late); {
		time.Sleep(time.Millisecond)
	}
	p.receiving.Store(false)
	return p.record, errors.Join(err, <-p.received, unix.Close(p.fd))
}

// Missing returns how many requests have no answer yet.
func (p *Pinger) Missing() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.missing
}

// Sent returns how many requests were sent.
func (p *Pinger) Sent() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.record)
}

// send sends requests until it is stopped. Its thread has the highest priority if that is
// allowed, since a late request looks like silence; the thread ends with the goroutine.
func (p *Pinger) send() error {
	runtime.LockOSThread()
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
	next := time.Now()
	for p.sending.Load() {
		pause(time.Until(next))
		p.mu.Lock()
		number := len(p.record)
		p.record = append(p.record, Ping{Sent: time.Now()})
		p.missing++
		p.mu.Unlock()
		// The kernel fills in the checksum of ICMPv6, RFC 3542 §3.1.
		m, err := (&icmp.Message{Type: p.request, Body: &icmp.Echo{
			ID: int(p.id), Seq: int(uint16(number)), Data: binary.BigEndian.AppendUint64(nil, uint64(number)),
		}}).Marshal(nil)
		if err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		// A request that cannot be sent, for lack of a route for example, is lost like
		// any other.
		if err := unix.Sendto(p.fd, m, 0, p.to); errors.Is(err, unix.EBADF) || errors.Is(err, unix.EPERM) {
			return fmt.Errorf("ping: send: %w", err)
		}
		// Overdue requests are skipped, so that they are not sent in a burst.
		if next = next.Add(p.interval); time.Since(next) > 0 {
			next = time.Now()
		}
	}
	return nil
}

func (p *Pinger) receive() error {
	b, oob := make([]byte, 2048), make([]byte, 256)
	for p.receiving.Load() {
		n, oobn, _, _, err := unix.Recvmsg(p.fd, b, oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("ping: receive: %w", err)
		}
		m := b[:n]
		if p.request == ipv4.ICMPTypeEcho { // a raw IPv4 socket delivers the IP header, raw(7)
			m = m[min(n, int(m[0]&15)*4):]
		}
		if len(m) < messageLen || m[0] != p.reply || binary.BigEndian.Uint16(m[4:]) != p.id {
			continue
		}
		p.answered(binary.BigEndian.Uint64(m[headerLen:]), arrival(oob[:oobn]))
	}
	return nil
}

// answered records an answer. If a request has several answers, the first counts.
func (p *Pinger) answered(number uint64, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if number < uint64(len(p.record)) && p.record[number].Answered.IsZero() {
		p.record[number].Answered = at
		p.missing--
	}
}

// arrival returns the kernel's timestamp of a message, or the current time if it has none.
func arrival(oob []byte) time.Time {
	messages, _ := unix.ParseSocketControlMessage(oob)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= unix.SizeofPtr*2 {
			var at unix.Timespec
			copy(unsafe.Slice((*byte)(unsafe.Pointer(&at)), unsafe.Sizeof(at)), m.Data)
			return time.Unix(at.Unix())
		}
	}
	return time.Now()
}

// pause sleeps in the kernel, which wakes the thread on time; Go's timers need other
// threads for that.
func pause(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(d.Nanoseconds())
		_ = unix.Nanosleep(&t, nil) // if a signal interrupts it, the request is early
	}
}
