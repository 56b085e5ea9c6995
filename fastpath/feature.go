package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

// The features of UDP sockets that an engine uses.
var (
	featureGSO     = tun.Feature{Name: "UDP_SEGMENT", Since: tun.Version{Major: 4, Minor: 18}, Probe: func() error { return probeGSO(false) }}
	featureGSO128  = tun.Feature{Name: "UDP_SEGMENT with 128 segments", Since: tun.Version{Major: 6, Minor: 9}, Probe: func() error { return probeSegments(maxSegments) }}
	featureGRO     = tun.Feature{Name: "UDP_GRO", Since: tun.Version{Major: 5, Minor: 0}, Probe: func() error { return probeOption(unix.SOL_UDP, unix.UDP_GRO) }}
	featureRxqOvfl = tun.Feature{Name: "SO_RXQ_OVFL", Since: tun.Version{Major: 2, Minor: 6}, Probe: func() error { return probeOption(unix.SOL_SOCKET, unix.SO_RXQ_OVFL) }}
	featureSteer   = tun.Feature{Name: "SO_ATTACH_REUSEPORT_CBPF", Since: tun.Version{Major: 4, Minor: 5}, Probe: probeSteer}
	featureMemInfo = tun.Feature{Name: "SO_MEMINFO", Since: tun.Version{Major: 4, Minor: 12}, Probe: probeMemInfo}

	// Features lists all of them. The probes open sockets on the loopback of the
	// calling thread's network namespace.
	Features = []tun.Feature{featureGSO, featureGSO128, featureGRO, featureRxqOvfl, featureSteer, featureMemInfo}
)

// Kernel behaviour without a socket option that could be probed.
var (
	// groForwarded is the first kernel whose UDP GRO aggregates datagrams from
	// other hosts; earlier ones only aggregate between sockets of one host.
	groForwarded = tun.Version{Major: 5, Minor: 12}
	// usoThroughVXLAN is the first kernel series that does not lose UDP
	// super-packets forwarded into a VXLAN device (lost up to 6.8.4).
	usoThroughVXLAN = tun.Version{Major: 6, Minor: 9}
)

// selfTestWait is how long the self-test waits for a segment, in milliseconds.
// Loopback delivers before the send returns, so the limit can be short; it must not
// delay a daemon that is stopped during the test.
const selfTestWait = 200

var errCorrupted = errors.New("self-test on loopback: segments arrived damaged; this kernel corrupts GSO sends")

// probeGSO reports whether UDP GSO works here. It sends a train of equal segments
// to itself over loopback and compares what arrives, since Linux 7.0 to 7.1.4
// corrupts such trains.
func probeGSO(ipv6 bool) error {
	loopback := netip.MustParseAddr("127.0.0.1")
	if ipv6 {
		loopback = netip.IPv6Loopback()
	}
	fd, err := openSocket(netip.AddrPortFrom(loopback, 0), false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_SEGMENT, 0); err != nil {
		return fmt.Errorf("set UDP_SEGMENT: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	const count, size = 4, 64
	train := make([]byte, count*size)
	for i := range train {
		train[i] = byte(i/size<<6 | i%size)
	}
	control := sendControl(make([]byte, 0, sendControlLen), size, 0, ipv6)
	if _, err := unix.SendmsgN(fd, train, control, name, unix.MSG_DONTWAIT); err != nil {
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil // no loopback to test on; the setsockopt was accepted
		}
		return fmt.Errorf("self-test on loopback: sendmsg: %w", err)
	}
	got := make([]byte, 2*size)
	for i := range count {
		if !readable(fd, selfTestWait) {
			return fmt.Errorf("self-test on loopback: segment %d of %d did not arrive", i+1, count)
		}
		n, _, err := unix.Recvfrom(fd, got, unix.MSG_DONTWAIT)
		if err != nil {
			return fmt.Errorf("self-test on loopback: %w", os.NewSyscallError("recvfrom", err))
		}
		if string(got[:n]) != string(train[i*size:(i+1)*size]) {
			return errCorrupted
		}
	}
	return nil
}

// probeSegments reports whether a GSO send may have n segments: UDP_MAX_SEGMENTS
// is 64 before Linux 6.9 and 128 since (commit 1382e3b6a350).
func probeSegments(n int) error {
	fd, err := openSocket(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0), false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	control := sendControl(make([]byte, 0, sendControlLen), 1, 0, false)
	if _, err := unix.SendmsgN(fd, make([]byte, n), control, name, unix.MSG_DONTWAIT); err != nil {
		return fmt.Errorf("send %d segments over loopback: %w", n, err)
	}
	return nil
}

// probeOption reports whether a UDP socket accepts the option, with value 1.
func probeOption(level, option int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return fmt.Errorf("open UDP socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, level, option, 1)
}

// probeSteer reports whether BPF can select among sockets bound to one address.
func probeSteer() error {
	fd, err := openSocket(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0), true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return steer([]int{fd}, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), 0))
}

// probeMemInfo reports whether the drops of a socket can be read.
func probeMemInfo() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return fmt.Errorf("open UDP socket: %w", err)
	}
	defer unix.Close(fd)
	_, err = socketDrops(fd)
	return err
}

// readable waits for fd to become readable, for at most the given number of
// milliseconds without a signal.
func readable(fd, wait int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, wait)
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// enableGRO enables UDP GRO on fd if it is useful with this kernel.
func enableGRO(fd int) error {
	if tun.Kernel().Before(groForwarded) {
		return fmt.Errorf("UDP_GRO needs Linux %s", groForwarded)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1); err != nil {
		return fmt.Errorf("set UDP_GRO: %w", err)
	}
	return nil
}
