package keep

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// txChecksum reports whether the device computes checksums of what it sends
// (ethtool -k, tx-checksumming). Of a VXLAN device that is the feature
// tx-checksum-ip-generic alone.
func txChecksum(dev string) (on bool, err error) {
	value, err := ethtoolValue(dev, unix.ETHTOOL_GTXCSUM, 0)
	return value != 0, err
}

// noTxChecksum does what ethtool -K tx off does. There is ethtool over netlink
// too, but only in kernels that do not need this (Linux 5.6).
func noTxChecksum(dev string) error {
	if _, err := ethtoolValue(dev, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return fmt.Errorf("%w; do it by hand: ethtool -K %s tx-checksum-ip-generic off", err, dev)
	}
	return nil
}

// ethtoolValue is the ioctl SIOCETHTOOL with a struct ethtool_value
// (linux/ethtool.h): a command and a number, which it returns as the kernel left
// it. It acts in the network namespace of the calling thread.
func ethtoolValue(dev string, command, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	buf := new([8]byte)
	binary.NativeEndian.PutUint32(buf[:], command)
	binary.NativeEndian.PutUint32(buf[4:], value)
	// struct ifreq with a pointer as its union, which unix.Ifreq cannot carry.
	req := &struct {
		name [unix.IFNAMSIZ]byte
		data *[8]byte
		_    [16]byte
	}{data: buf}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	// buf is reached through req only, which the compiler keeps for the call's
	// time alone.
	var pin runtime.Pinner
	pin.Pin(buf)
	defer pin.Unpin()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint32(buf[4:]), nil
}
