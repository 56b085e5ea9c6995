package fastpath

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// socket is a UDP socket of a test, and its address.
type socket struct {
	fd   int
	name unix.Sockaddr
	addr netip.AddrPort
}

// open opens a UDP socket on a free port of addr.
func openUDP(t testing.TB, addr string) socket {
	t.Helper()
	fd, err := openSocket(netip.AddrPortFrom(netip.MustParseAddr(addr), 0), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	s := socket{fd: fd, name: name}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		s.addr = netip.AddrPortFrom(netip.AddrFrom4(n.Addr), uint16(n.Port))
	case *unix.SockaddrInet6:
		s.addr = netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port))
	}
	return s
}

// loopbackPair is a socket, and another that may send to name, where the first
// is.
func loopbackPair(t testing.TB) (fd int, peer socket) {
	a, b := openUDP(t, "127.0.0.1"), openUDP(t, "127.0.0.1")
	return a.fd, socket{fd: b.fd, name: a.name, addr: a.addr}
}

// receiveAll takes n messages from the socket of r's shard, as run does, and
// calls each for them.
func receiveAll(t *testing.T, r *rx, n int, each func(b []byte, info recvInfo, from netip.Addr)) {
	t.Helper()
	deadline := time.Now().Add(testkit.Patience)
	for n > 0 {
		got, errno := r.receive(len(r.msgs))
		switch errno {
		case 0:
		case unix.EAGAIN:
			if time.Now().After(deadline) {
				t.Fatalf("%d messages did not arrive within %s", n, testkit.Patience)
			}
			unix.Poll([]unix.PollFd{{Fd: int32(r.shard.fd), Events: unix.POLLIN}}, 100)
			continue
		default:
			t.Fatal(errno)
		}
		for i := range got {
			h := &r.msgs[i].hdr
			var info recvInfo
			if !parseControl(r.control[i*recvControlLen:][:h.Controllen], &info) || h.Flags&unix.MSG_CTRUNC != 0 {
				t.Errorf("message %d: control messages % x, flags %#x", i, r.control[i*recvControlLen:][:h.Controllen], h.Flags)
			}
			each(r.arena[i*slotSize:][:r.msgs[i].len], info, decodeSockaddr(&r.names[i]).Addr())
		}
		n -= got
	}
}

// newSockRX is an RX direction that receives from fd.
func newSockRX(fd int) *rx {
	s := newShard(new(fakeQueue), discard{})
	s.fd, s.sendFD = fd, fd
	return newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
}

// messages makes messages of single packets to peer, with different sizes and
// ECN fields, of two vectors where it goes.
func messages(peer *Peer) (msgs []message) {
	for i, size := range []int{1, 2, 3, 100, 1472, 5000, 65507} {
		b := pattern(size)
		m := message{peer: peer, segment: size, bytes: size, packets: 1}
		if !strings.HasSuffix(layout(), "big endian") { // qemu-user does not swap it
			m.tos = uint8(i % 4)
		}
		m.iov = []unix.Iovec{vector(b[:(size+1)/2])}
		if size > 1 {
			m.iov = append(m.iov, vector(b[(size+1)/2:]))
		}
		msgs = append(msgs, m)
	}
	return msgs
}

// sendAll sends msgs, in parts if need be, up to the first that is refused, and
// returns how many were sent. A signal may end each call early.
func sendAll(s sender, msgs []message) (sent int, errno unix.Errno) {
	for sent < len(msgs) {
		n, errno := s.send(msgs[sent:])
		if errno != 0 && errno != unix.EINTR {
			return sent, errno
		}
		sent += n
	}
	return sent, 0
}

// TestSendersOverLoopback sends through both senders and receives through
// recvmmsg: the layouts of the headers are the kernel's.
func TestSendersOverLoopback(t *testing.T) {
	to, from := openUDP(t, "127.0.0.1"), openUDP(t, "127.0.0.1")
	plain := newBatchSender(newOutlets(from.fd, from.fd, false), from.addr.Addr())
	for name, s := range map[string]sender{"sendmmsg": newMmsgSender(newOutlets(from.fd, from.fd, false)), "x/net": plain} {
		t.Run(name, func(t *testing.T) {
			msgs := messages(NewPeer(nil, to.addr))
			if n, errno := sendAll(s, msgs); errno != 0 {
				t.Fatalf("message %d: %v", n, errno)
			}
			i := 0
			receiveAll(t, newSockRX(to.fd), len(msgs), func(b []byte, info recvInfo, src netip.Addr) {
				m := &msgs[i]
				if !bytes.Equal(b, pattern(m.bytes)) {
					t.Errorf("message %d of %d bytes arrived with %d, or others", i, m.bytes, len(b))
				}
				if info != (recvInfo{tos: m.tos}) || src != from.addr.Addr() {
					t.Errorf("message %d with TOS %d: %+v from %s", i, m.tos, info, src)
				}
				i++
			})
		})
	}
}

func TestReceiveOnAnEmptySocketReturnsEAGAIN(t *testing.T) {
	s := openUDP(t, "127.0.0.1")
	if n, errno := newSockRX(s.fd).receive(1); errno != unix.EAGAIN {
		t.Errorf("%d, %v", n, errno)
	}
}

func TestSenderReturnsTheErrorOfTheFirstMessage(t *testing.T) {
	to, from := openUDP(t, "127.0.0.1"), openUDP(t, "127.0.0.1")
	plain := newBatchSender(newOutlets(from.fd, from.fd, false), from.addr.Addr())
	for name, s := range map[string]sender{"sendmmsg": newMmsgSender(newOutlets(from.fd, from.fd, false)), "x/net": plain} {
		good := messages(NewPeer(nil, to.addr))[:2]
		big := message{peer: good[0].peer, segment: 65508, bytes: 65508, packets: 1, iov: []unix.Iovec{vector(pattern(65508))}}
		if n, errno := sendAll(s, []message{good[0], good[1], big}); n != 2 || errno != unix.EMSGSIZE {
			t.Errorf("%s: two good ones and a bad: %d, %v", name, n, errno)
		}
		if n, errno := sendAll(s, []message{big, good[0]}); n != 0 || errno != unix.EMSGSIZE {
			t.Errorf("%s: a bad one and a good: %d, %v", name, n, errno)
		}
	}
}

func TestWaiter(t *testing.T) {
	fd, peer := loopbackPair(t)
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(stop)
	w := waiterFor(stop, fd, unix.POLLIN)
	time.AfterFunc(10*time.Millisecond, func() { _ = unix.Sendto(peer.fd, []byte{1}, 0, peer.name) })
	if ready, err := w.wait(); !ready || err != nil {
		t.Errorf("for a datagram: %t, %v", ready, err)
	}
	if _, err := unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 1}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if ready, err := w.wait(); ready || err != nil {
			t.Errorf("for a datagram when the engine stops: %t, %v", ready, err)
		}
	}
}

// TestWaitThatFailsIsNotTakenForTheEndOfTheEngine: poll(2) refuses more
// descriptors than RLIMIT_NOFILE allows with EINVAL, and reports a closed one.
func TestWaitThatFailsIsNotTakenForTheEndOfTheEngine(t *testing.T) {
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	w := newWaiter(stop)
	for range limit.Cur {
		w.add(-1, unix.POLLIN) // ignored, poll(2)
	}
	if ready, err := w.wait(); ready || !errors.Is(err, unix.EINVAL) {
		t.Errorf("more descriptors than allowed: %t, %v", ready, err)
	}
	w = newWaiter(stop)
	if err := unix.Close(stop); err != nil {
		t.Fatal(err)
	}
	if ready, err := w.wait(); ready || err == nil {
		t.Errorf("closed eventfd: %t, %v", ready, err)
	}
}
