package fastpath

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// waiter puts a thread to sleep until a descriptor is ready or the engine
// stops. It belongs to that thread.
type waiter struct{ fds [2]unix.PollFd }

func newWaiter(fd, stop int, events int16) waiter {
	return waiter{[2]unix.PollFd{
		{Fd: int32(fd), Events: events},
		{Fd: int32(stop), Events: unix.POLLIN},
	}}
}

// wait reports true when the descriptor is ready, or has an error that the
// next call on it will tell, and false when the engine stops.
func (w *waiter) wait() bool {
	for {
		w.fds[0].Revents, w.fds[1].Revents = 0, 0
		if _, err := unix.Poll(w.fds[:], -1); err != nil && err != unix.EINTR {
			return false
		}
		if w.fds[1].Revents != 0 {
			return false
		}
		if w.fds[0].Revents != 0 {
			return true
		}
	}
}

// deviceGone reports whether errno says that the TUN device was deleted.
func deviceGone(errno unix.Errno) bool {
	return errno == unix.EBADFD || errno == unix.EFAULT || errno == unix.EBADF
}

func deviceError(op string, errno unix.Errno) error {
	if deviceGone(errno) {
		return fmt.Errorf("%s the TUN device: %w; somebody deleted it: start the daemon again to make it anew", op, errno)
	}
	return fmt.Errorf("%s the TUN device: %w", op, errno)
}
