package bench

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// udpBuffer is the size of the sockets' buffers in bytes.
const udpBuffer = 8 << 20

// udpPair is two UDP sockets that are connected to each other. They block, for
// 20 ms at most, and are used through raw system calls, so that the runtime's poller
// is not part of what is measured.
type udpPair struct {
	client, server int
}

func newUDPPair(c *Connection) (p udpPair, err error) {
	client, clientAddr, err := udpSocket(c.Client)
	if err != nil {
		return p, err
	}
	server, serverAddr, err := udpSocket(c.Server)
	if err != nil {
		unix.Close(client)
		return p, err
	}
	p = udpPair{client, server}
	if err = unix.Connect(client, serverAddr); err == nil {
		err = unix.Connect(server, clientAddr)
	}
	if err != nil {
		p.close()
		return p, fmt.Errorf("connect UDP sockets: %w", err)
	}
	return p, nil
}

func (p udpPair) close() {
	unix.Close(p.client)
	unix.Close(p.server)
}

// udpSocket opens a socket bound to the endpoint's IPv4 address and a
// free port.
func udpSocket(e Endpoint) (fd int, bound unix.Sockaddr, err error) {
	err = e.NS.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, nil, fmt.Errorf("%s: UDP socket: %w", e.NS, err)
	}
	if bound, err = prepareUDP(fd, e.Addr); err != nil {
		unix.Close(fd)
		return -1, nil, fmt.Errorf("%s: UDP socket on %s: %w", e.NS, e.Addr, err)
	}
	return fd, bound, nil
}

func prepareUDP(fd int, addr netip.Addr) (unix.Sockaddr, error) {
	for _, opt := range []int{unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, udpBuffer); err != nil {
			return nil, fmt.Errorf("set buffer to %d bytes: %w", udpBuffer, err)
		}
	}
	if err := setTimeouts(fd); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: addr.As4()}); err != nil {
		return nil, fmt.Errorf("bind: %w", err)
	}
	return unix.Getsockname(fd)
}

// setTimeouts makes blocking calls on the socket return EAGAIN after 20 ms.
func setTimeouts(fd int) error {
	tv := unix.NsecToTimeval(20e6)
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return fmt.Errorf("set timeout: %w", err)
		}
	}
	return nil
}
