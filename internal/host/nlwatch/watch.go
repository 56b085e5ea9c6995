// Package nlwatch receives the kernel's notifications about changes of
// interfaces, addresses and routes.
package nlwatch

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// pause is the delay before a socket that cannot be read is tried again.
const pause = 5 * time.Second

// Watcher is a netlink socket that receives notifications about changes in a
// network namespace.
type Watcher struct {
	socket *nl.NetlinkSocket
	close  func()
	closed chan struct{}
}

// Open subscribes to groups (unix.RTNLGRP_LINK, …; below 32) in the network
// namespace of the calling thread. The Watcher receives all changes made after Open
// has returned.
func Open(groups ...uint) (*Watcher, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("subscribe to netlink notifications: %w", err)
	}
	w := &Watcher{socket: socket, closed: make(chan struct{})}
	w.close = sync.OnceFunc(func() {
		close(w.closed)
		socket.Close() // wakes Next
	})
	return w, nil
}

// Close closes the watcher and unblocks Next. It may be called at any time and
// more than once.
func (w *Watcher) Close() { w.close() }

// Closed reports whether Close was called.
func (w *Watcher) Closed() bool {
	select {
	case <-w.closed:
		return true
	default:
		return false
	}
}

// Next waits for notifications until deadline; a zero deadline means no limit.
// missed reports that notifications were lost, because they arrived faster than
// they were read or because the socket failed; the caller then has to read the
// current state. After Close, Next returns immediately with nothing. It must
// not be called concurrently with itself.
func (w *Watcher) Next(deadline time.Time) (messages []syscall.NetlinkMessage, missed bool) {
	for {
		var timeout unix.Timeval // zero: no timeout
		if !deadline.IsZero() {
			timeout = unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
		}
		_ = w.socket.SetReceiveTimeout(&timeout) // cannot fail
		messages, from, err := w.socket.Receive()
		if w.Closed() {
			return nil, false
		}
		switch {
		case err == nil && from.Pid == nl.PidKernel:
			return messages, false
		case err == nil, errors.Is(err, unix.EINTR): // any process with CAP_NET_ADMIN may send to the socket
		case errors.Is(err, unix.EAGAIN): // the receive timeout expired
			return nil, false
		case errors.Is(err, unix.ENOBUFS):
			return nil, true
		default: // unknown error: have the caller read the state periodically
			select {
			case <-time.After(pause):
			case <-w.closed:
			}
			return nil, true
		}
	}
}
