package fastpath

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of recvmmsg(2). Go aligns it as C does: 64 bytes
// on 64-bit machines, 32 on 32-bit ones.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32 // bytes sent or received, written by the kernel
}

// sendmmsg passes msgs to the kernel without blocking and returns how many it
// accepted. It reports an error only if the kernel accepted none.
func sendmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// recvmmsg receives into msgs without blocking and returns how many messages
// arrived. It reports an error only if none arrived.
func recvmmsg(fd int, msgs []mmsghdr) (int, unix.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// setVectors points h at iov.
func setVectors(h *unix.Msghdr, iov []unix.Iovec) {
	h.Iov = unsafe.SliceData(iov)
	h.SetIovlen(len(iov))
}

// setControl points h at the control message buffer b.
func setControl(h *unix.Msghdr, b []byte) {
	h.Control = nil
	if len(b) > 0 {
		h.Control = unsafe.SliceData(b)
	}
	h.SetControllen(len(b))
}

// vector returns an iovec for b, which must not be empty.
func vector(b []byte) (v unix.Iovec) {
	v.Base = unsafe.SliceData(b)
	v.SetLen(len(b))
	return v
}

// vectorBytes returns what v points at.
func vectorBytes(v *unix.Iovec) []byte { return unsafe.Slice(v.Base, int(v.Len)) }
