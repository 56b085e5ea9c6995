package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// bound returns the address that fd is bound to.
func bound(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	t.Fatalf("%T", name)
	return netip.AddrPort{}
}

// steered opens n sockets on one port of addr among which the kernel chooses by
// the source port.
func steered(t *testing.T, addr string, n int) (fds []int, local netip.AddrPort) {
	t.Helper()
	var err error
	for port := uint16(18285); ; port++ {
		local = netip.AddrPortFrom(netip.MustParseAddr(addr), port)
		if fds, err = openSockets(local, n, true); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAll(fds) })
	err = steer(fds, local)
	if errors.Is(err, unix.ENOPROTOOPT) { // qemu's user mode emulation
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fds, local
}

// cameIn returns in which of fds the next datagram arrives.
func cameIn(t *testing.T, fds []int) int {
	t.Helper()
	set := make([]unix.PollFd, len(fds))
	for i, fd := range fds {
		set[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	for {
		n, err := unix.Poll(set, 5000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n != 1 {
			t.Fatalf("%d sockets have a datagram, %v", n, err)
		}
		break
	}
	i := slices.IndexFunc(set, func(p unix.PollFd) bool { return p.Revents != 0 })
	if _, _, err := unix.Recvfrom(fds[i], make([]byte, 99), unix.MSG_DONTWAIT); err != nil {
		t.Fatal(err)
	}
	return i
}

func TestEachSendersDatagramsComeToASocketOfTheirOwn(t *testing.T) {
	for _, addr := range []string{"127.0.0.1", "::1"} {
		for _, n := range []int{2, 3, 4, 8} {
			t.Run(fmt.Sprintf("%s, %d", addr, n), func(t *testing.T) {
				receivers, local := steered(t, addr, n)
				senders, err := openSenders(local.Addr(), n)
				if err != nil {
					t.Fatal(err)
				}
				defer closeAll(senders)
				var came []int
				for _, fd := range senders {
					first := -1
					for range 5 { // all of a sender's into one
						if err := unix.Sendto(fd, []byte("packet"), 0, sockaddr(local)); err != nil {
							t.Fatal(err)
						}
						i := cameIn(t, receivers)
						if first >= 0 && i != first {
							t.Errorf("datagrams of one port arrive at sockets %d and %d", first, i)
						}
						first = i
					}
					came = append(came, first)
				}
				slices.Sort(came)
				if len(slices.Compact(came)) != n {
					t.Errorf("%d senders arrive at sockets %v", n, came)
				}
			})
		}
	}
}

// TestStockPeersAreDistinguishedByAddress: they all send from the port that
// they receive on.
func TestStockPeersAreDistinguishedByAddress(t *testing.T) {
	receivers, local := steered(t, "127.0.0.1", 4)
	for host := range 8 {
		fd, err := openSocket(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(host)}), local.Port()), false)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Sendto(fd, []byte("packet"), 0, sockaddr(local)); err != nil {
			t.Fatal(err)
		}
		if i := cameIn(t, receivers); i != (256+host)%4 {
			t.Errorf("host %d arrives at socket %d", host, i)
		}
	}
}

func TestTakenSourcePortsArePassedOver(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.1")
	first, err := openSenders(addr, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(first)
	second, err := openSenders(addr, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(second)
	for i := range 4 {
		a, b := bound(t, first[i]).Port(), bound(t, second[i]).Port()
		if a == b || a%sourcePortClasses != b%sourcePortClasses || int(a%sourcePortClasses) != i {
			t.Errorf("shard %d of one daemon sends from %d, of another from %d", i, a, b)
		}
	}
}

func TestNothingIsReceivedWhereShardsSendFrom(t *testing.T) {
	senders, err := openSenders(netip.MustParseAddr("127.0.0.1"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(senders)
	other := openUDP(t, "127.0.0.1")
	if err := unix.Sendto(other.fd, []byte("anybody"), 0, sockaddr(bound(t, senders[0]))); err != nil {
		t.Fatal(err)
	}
	// Loopback delivers before the send returns.
	if _, _, err := unix.Recvfrom(senders[0], make([]byte, 99), unix.MSG_DONTWAIT); err != unix.EAGAIN {
		t.Errorf("received, or %v", err)
	}
}
