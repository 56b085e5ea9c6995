package tun

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readFD is read(2) without the poller and without allocation, repeated on
// EINTR. The descriptor is non-blocking, so the call cannot stall the scheduler.
func readFD(fd int, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// writevFD is writev(2) under the same conditions. A TUN device accepts a whole
// packet or nothing.
func writevFD(fd int, iov []unix.Iovec) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)))
		switch errno {
		case 0:
			return 0
		case unix.EINTR:
		default:
			return errno
		}
	}
}
