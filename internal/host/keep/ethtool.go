package keep

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// txChecksum reports whether the device computes checksums of the packets it
// sends (ethtool -k, tx-checksumming). For a VXLAN device this is just the
// feature tx-checksum-ip-generic.
func txChecksum(dev string) (on bool, err error) {
	value, err := ethtoolValue(dev, unix.ETHTOOL_GTXCSUM, 0)
	return value != 0, err
}

// noTxChecksum does the same as ethtool -K tx off. Ethtool over netlink is
// available only in kernels that do not need it (Linux 5.6).
func noTxChecksum(dev string) error {
	if _, err := ethtoolValue(dev, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return fmt.Errorf("%w; do it by hand: ethtool -K %s tx-checksum-ip-generic off", err, dev)
	}
	return nil
}

// ethtoolValue issues the ioctl SIOCETHTOOL with a struct ethtool_value
// (linux/ethtool.h): a command and a value. It returns the value as the kernel
// left it. It acts in the network namespace of the calling thread.
func ethtoolValue(dev string, command, value uint32) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	buf := new([8]byte)
	binary.NativeEndian.PutUint32(buf[:], command)
	binary.NativeEndian.PutUint32(buf[4:], value)
	// struct ifreq with a pointer as its union, which unix.Ifreq does not
	// support.
	req := &struct {
		name [unix.IFNAMSIZ]byte
		data *[8]byte
		_    [16]byte
	}{data: buf}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	// buf is reachable only through req, which the compiler keeps alive just
	// for the duration of the call.
	var pin runtime.Pinner
	pin.Pin(buf)
	defer pin.Unpin()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(req))); errno != 0 {
		return 0, errno
	}
	return binary.NativeEndian.Uint32(buf[4:]), nil
}
