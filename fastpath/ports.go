package fastpath

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	// firstSourcePort is the first of the ports that shards send from: the
	// dynamic ones of RFC 6335 §6.
	firstSourcePort = 49152
	// sourcePortClasses is how many source ports a receiver can distinguish,
	// whatever the number of its sockets: shard i sends from a port that is
	// i modulo this number.
	sourcePortClasses = 64
)

// openSenders opens a socket for each of n shards to send from, on ports of
// their own, so that the flows of different shards stay apart: on the underlay,
// which hashes over ports, and on the receiving host, which has several sockets
// and reads them in turn. flannel's udp backend ignores the source
// port (proxy_amd64.c, sock_recv_packet).
//
// Nothing is received on these sockets.
func openSenders(local netip.Addr, n int) (fds []int, err error) {
	for i := range n {
		fd, err := openSender(local, i)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("open sending socket %d of %d: %w", i+1, n, err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// openSender opens the socket for shard i.
func openSender(local netip.Addr, i int) (int, error) {
	for port := firstSourcePort + i%sourcePortClasses; port <= 0xffff; port += sourcePortClasses {
		fd, err := openSocket(netip.AddrPortFrom(local, uint16(port)), false)
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err == nil {
			if err = attach(fd, unix.SO_ATTACH_FILTER, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}); err != nil {
				_ = unix.Close(fd)
			}
		}
		return fd, err
	}
	return -1, fmt.Errorf("no UDP port of %d, %d, … is free", firstSourcePort+i%sourcePortClasses, firstSourcePort+i%sourcePortClasses+sourcePortClasses)
}

// steer makes the kernel choose among the sockets fds, which are all those bound
// to local, by the source port of a datagram. Datagrams from local's own port, which
// stock flannel sends from, are distributed by their source address
// (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5). Without steer a hash of both decides, and
// two shards of a peer may end up on one socket.
func steer(fds []int, local netip.AddrPort) error {
	return attach(fds[0], unix.SO_ATTACH_REUSEPORT_CBPF, steering(len(fds), local))
}

// steering returns the program for n sockets.
func steering(n int, local netip.AddrPort) []unix.SockFilter {
	// Offsets into the IP header. If it has options, another field is
	// read, which is as good as the port if all datagrams of a flow have them.
	sourceLow, port := uint32(networkHeader+14), uint32(networkHeader+20)
	if local.Addr().Is6() {
		sourceLow, port = networkHeader+22, networkHeader+40
	}
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: port},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(local.Port()), Jf: 1},
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: sourceLow},
		{Code: unix.BPF_ALU | unix.BPF_MOD | unix.BPF_K, K: uint32(n)},
		{Code: unix.BPF_RET | unix.BPF_A},
	}
}

// attach attaches a classic BPF program to fd.
func attach(fd, option int, program []unix.SockFilter) error {
	err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("attach BPF program to the UDP socket: %w", err)
	}
	return nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
