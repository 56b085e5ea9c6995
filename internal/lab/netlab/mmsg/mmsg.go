// Package mmsg moves several messages between a socket and memory in one
// system call, recvmmsg(2) and sendmmsg(2), for the traffic generators and
// relays of tests. It carries no addresses and no control messages.
package mmsg

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr; Go pads it as C does, on 32-bit systems too.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// Batch is an array of messages. It belongs to one goroutine at a time.
type Batch struct {
	hdrs []mmsghdr
	iovs []unix.Iovec
}

// NewBatch creates a batch of n messages without memory.
func NewBatch(n int) *Batch {
	b := &Batch{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n)}
	for i := range b.hdrs {
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
	}
	return b
}

// Size returns the number of messages in the batch.
func (b *Batch) Size() int { return len(b.hdrs) }

// Set assigns message i its memory: what to send, or where to receive. The batch
// keeps buf until the next call of Set. buf must not be empty.
func (b *Batch) Set(i int, buf []byte) {
	b.iovs[i].Base = &buf[0]
	b.iovs[i].SetLen(len(buf))
}

// Len returns the length of message i after Recv; with MSG_TRUNC it is the length of the
// datagram, which can exceed the buffer.
func (b *Batch) Len(i int) int { return int(b.hdrs[i].len) }

// Recv receives up to Size messages and returns how many arrived.
func (b *Batch) Recv(fd, flags int) (int, error) {
	return b.call("recvmmsg", unix.SYS_RECVMMSG, fd, b.hdrs, flags)
}

// Send sends the messages numbered from up to, but not including, to. It returns how many
// of them were sent; an error refers to the first of them, and then none were sent.
func (b *Batch) Send(fd, from, to, flags int) (int, error) {
	return b.call("sendmmsg", unix.SYS_SENDMMSG, fd, b.hdrs[from:to], flags)
}

func (b *Batch) call(name string, trap uintptr, fd int, hdrs []mmsghdr, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(hdrs))), uintptr(len(hdrs)), uintptr(flags), 0, 0)
		runtime.KeepAlive(b)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, fmt.Errorf("%s: %w", name, errno)
		}
	}
}
