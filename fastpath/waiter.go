package fastpath

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nap is how long a sleep stays hidden from Go's scheduler, in nanoseconds.
const nap = 1e6

// waiter puts a thread to sleep until a descriptor is ready or the engine
// stops. It belongs to that thread.
type waiter struct {
	fds   []unix.PollFd
	limit unix.Timespec // of a nap; the kernel writes the remaining time to it
}

// newWaiter returns a waiter that waits only for the end of the engine, when stop becomes
// readable.
func newWaiter(stop int) waiter {
	return waiter{fds: []unix.PollFd{{Fd: int32(stop), Events: unix.POLLIN}}}
}

// waiterFor returns a waiter for events on one descriptor.
func waiterFor(stop, fd int, events int16) waiter {
	w := newWaiter(stop)
	w.add(fd, events)
	return w
}

// add makes w also wait for events on fd.
func (w *waiter) add(fd int, events int16) {
	w.fds = append(w.fds, unix.PollFd{Fd: int32(fd), Events: events})
}

// ready reports whether the i-th descriptor added was ready when the last wait
// ended.
func (w *waiter) ready(i int) bool { return w.fds[i+1].Revents != 0 }

// wait returns true when a descriptor is ready, or has an error that the next
// call on it returns, and false when the engine stops. It returns an error if it could
// not wait, for example for lack of memory.
//
// Under load a thread sleeps for microseconds, thousands of times a second. If
// the scheduler saw each sleep, its monitor would hand the processor on and wake
// other threads of the runtime to look for work that does not exist. A sleep
// therefore begins as a system call that is hidden from the scheduler (a signal
// interrupts it if the garbage collector needs the thread); only a longer one
// continues visibly. Run makes sure that there are enough processors.
func (w *waiter) wait() (ready bool, err error) {
	if n, errno := w.nap(); n > 0 && errno == 0 {
		return w.found()
	}
	for {
		switch _, err := unix.Poll(w.fds, -1); err {
		case nil:
			return w.found()
		case unix.EINTR:
		default:
			return false, fmt.Errorf("wait for packets: %w", os.NewSyscallError("poll", err))
		}
	}
}

// found records the result of a successful poll.
func (w *waiter) found() (ready bool, err error) {
	switch r := w.fds[0].Revents; {
	case r == 0:
		return true, nil
	case r&unix.POLLIN != 0:
		return false, nil
	default:
		return false, fmt.Errorf("wait for packets: eventfd of the engine: poll events %#x", r)
	}
}

// nap waits for at most the duration nap.
func (w *waiter) nap() (int, unix.Errno) {
	w.limit = unix.NsecToTimespec(nap)
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(w.fds))), uintptr(len(w.fds)),
		uintptr(unsafe.Pointer(&w.limit)), 0, 0, 0)
	return int(n), errno
}

// deviceGone reports whether errno means that the TUN device was deleted.
func deviceGone(errno unix.Errno) bool {
	return errno == unix.EBADFD || errno == unix.EFAULT || errno == unix.EBADF
}

// ErrDeviceGone ends an engine whose TUN device was deleted. A new engine on a
// new device can replace it.
var ErrDeviceGone = errors.New("the device was deleted")

func deviceError(op string, errno unix.Errno) error {
	if deviceGone(errno) {
		return fmt.Errorf("%s the TUN device: %w: %w", op, errno, ErrDeviceGone)
	}
	return fmt.Errorf("%s the TUN device: %w", op, errno)
}
