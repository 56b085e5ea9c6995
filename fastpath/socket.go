package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is UDP_MAX_SEGMENTS, how many segments one GSO send may
	// have: 64 until Linux 6.9 (commit 1382e3b6a350).
	maxSegments    = 128
	maxSegmentsOld = 64
)

// openSocket opens a non-blocking UDP socket bound to local. If shared is set it may
// be one of several on the same address.
//
// Path MTU discovery is on and the socket never fragments (IP_PMTUDISC_DO), so
// that a packet too big for the path comes back as EMSGSIZE and the inner
// sender can be sent an ICMP error.
func openSocket(local netip.AddrPort, shared bool) (_ int, err error) {
	family := unix.AF_INET
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP)
	if err != nil {
		return -1, fmt.Errorf("open UDP socket: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Close(fd)
		}
	}()
	set := func(level, opt, value int, name string) {
		if err != nil {
			return
		}
		if e := unix.SetsockoptInt(fd, level, opt, value); e != nil {
			err = fmt.Errorf("set %s on the UDP socket: %w", name, e)
		}
	}
	if family == unix.AF_INET {
		set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO, "IP_MTU_DISCOVER")
		set(unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS")
	} else {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY")
		set(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO, "IPV6_MTU_DISCOVER")
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS")
	}
	if shared {
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1, "SO_REUSEPORT")
	}
	if err != nil {
		return -1, err
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1) // for a counter; not every sandbox supports it
	if err = unix.Bind(fd, sockaddr(local)); err != nil {
		return -1, bindError(local, err)
	}
	return fd, nil
}

// setBuffers requests buffers of size bytes for both directions of a socket, beyond
// net.core.[rw]mem_max if the process has CAP_NET_ADMIN. Smaller ones are acceptable.
func setBuffers(fd, size int) {
	for _, opts := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, opts[0], size) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opts[1], size)
		}
	}
}

// sockaddr returns a in the form that x/sys/unix expects.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func bindError(local netip.AddrPort, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("bind UDP %s: %w; another flanneld or twilld uses the port: stop it, or set another Port in the network's Backend on all nodes", local, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("bind UDP %s: %w; the address is not on this host: choose the interface with --iface or --public-ip", local, err)
	}
	return fmt.Errorf("bind UDP %s: %w", local, err)
}

// openSockets opens n sockets on local, which others may share if shared is set.
// SO_REUSEPORT would also let a second daemon share the port and take half of the
// datagrams, so the port is first bound without it.
//
// A child that this process has forked, but that has not called exec yet, holds copies
// of the sockets just closed, and thereby the port. The lock waits for such children
// and prevents further forks.
func openSockets(local netip.AddrPort, n int, shared bool) (fds []int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if shared {
		fd, err := openSocket(local, false)
		if err != nil {
			return nil, err
		}
		_ = unix.Close(fd)
	}
	for range n {
		fd, err := openSocket(local, shared)
		if err != nil {
			closeAll(fds)
			return nil, err
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// pathMTU returns the MTU of the path to p as known to the kernel, in bytes of
// the outer packet. It is slow and meant only for error handling.
func pathMTU(local netip.Addr, p *Peer) (int, error) {
	family, level, opt := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU
	if local.Is6() {
		family, level, opt = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(local, 0))); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, sockaddr(p.Endpoint)); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, level, opt)
}

// discovery is how a socket treats the path MTUs that the kernel has learnt, ip(7):
// IP_MTU_DISCOVER. Its values are the same for IPv6.
type discovery int

const (
	// believing refuses to send larger datagrams (EMSGSIZE).
	believing discovery = unix.IP_PMTUDISC_DO
	// fragmenting sends larger datagrams in fragments, and all without DF.
	fragmenting discovery = unix.IP_PMTUDISC_DONT
	// ignoring sends all datagrams that fit the interface, with DF.
	ignoring discovery = unix.IP_PMTUDISC_PROBE
)

// setDiscovery sets the discovery of fd.
func setDiscovery(fd int, ipv6 bool, d discovery) unix.Errno {
	level, option := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if ipv6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	if err := unix.SetsockoptInt(fd, level, option, int(d)); err != nil {
		return err.(unix.Errno)
	}
	return 0
}
