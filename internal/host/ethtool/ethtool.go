// Package ethtool reads and writes the features of network devices through the ioctl
// SIOCETHTOOL. Ethtool over netlink needs Linux 5.6.
package ethtool

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Value issues a command that takes a struct ethtool_value (linux/ethtool.h), such as
// ETHTOOL_GTXCSUM. It returns the value as the kernel left it. It acts in the network
// namespace of the calling thread.
func Value(dev string, command, value uint32) (uint32, error) {
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
