// Command floor moves packets between a TUN device and a UDP socket without
// inspecting them: one read and one write per packet or super-packet, and nothing
// else. The laboratory measures it alongside twill, since it shows what TUN and UDP
// cost any program that uses them.
//
// It is not a tunnel for other purposes. It has one peer, checks nothing, and with
// offloads its datagrams carry virtio-net headers and are cut wherever UDP_SEGMENT
// happens to cut, so only the kernel's UDP_GRO on the other side can reassemble
// them.
//
// Usage: floor DEVICE LOCAL PEER MTU [plain]
//
// LOCAL and PEER are IPv4 addresses, MTU is that of the network between them.
// "plain" moves one packet per call, without offloads on either side.
package main

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	port       = 8285
	udpHeaders = 28       // IPv4 and UDP
	maxRead    = 70 << 10 // a super-packet after its virtio-net header
	sockBuffer = 8 << 20
	offloads   = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_USO4 | unix.TUN_F_USO6
)

func main() {
	fmt.Fprintln(os.Stderr, "floor:", run(os.Args[1:]))
	os.Exit(1)
}

// run forwards until the process is killed. It returns only if set-up fails.
func run(args []string) error {
	plain := len(args) == 5 && args[4] == "plain"
	if len(args) != 4 && !plain {
		return fmt.Errorf("usage: floor DEVICE LOCAL PEER MTU [plain]")
	}
	local, err := netip.ParseAddr(args[1])
	if err != nil {
		return err
	}
	peer, err := netip.ParseAddr(args[2])
	if err != nil {
		return err
	}
	mtu, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	tun, err := openTUN(args[0], !plain)
	if err != nil {
		return fmt.Errorf("open TUN device %s: %w", args[0], err)
	}
	segment := mtu - udpHeaders
	if plain {
		segment = 0
	}
	sock, err := openSocket(local, peer, segment)
	if err != nil {
		return fmt.Errorf("open UDP socket %s to %s: %w", local, peer, err)
	}
	go move(tun, sock)
	go move(sock, tun)
	select {}
}

// move copies packets from one descriptor to the other forever. Packets that cannot
// be written, for example because the peer is not listening yet, are lost.
func move(from, to int) {
	runtime.LockOSThread()
	b := make([]byte, maxRead)
	for {
		if n, err := unix.Read(from, b); err == nil {
			unix.Write(to, b[:n])
		}
	}
}

func openTUN(name string, offload bool) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return -1, err
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if offload {
		flags |= unix.IFF_VNET_HDR
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return -1, err
	}
	if !offload {
		return fd, nil
	}
	return fd, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloads)
}

// openSocket returns a socket that sends each write as datagrams of segment bytes
// and returns them merged when it receives; with segment 0 it handles one datagram
// per call.
func openSocket(local, peer netip.Addr, segment int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	options := [][3]int{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, sockBuffer},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sockBuffer},
	}
	if segment > 0 {
		options = append(options, [3]int{unix.SOL_UDP, unix.UDP_SEGMENT, segment}, [3]int{unix.SOL_UDP, unix.UDP_GRO, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o[0], o[1], o[2]); err != nil {
			return -1, fmt.Errorf("set socket option %d: %w", o[1], err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: local.As4()}); err != nil {
		return -1, err
	}
	return fd, unix.Connect(fd, &unix.SockaddrInet4{Port: port, Addr: peer.As4()})
}
