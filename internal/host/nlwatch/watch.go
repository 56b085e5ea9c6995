// Package nlwatch waits for what the kernel tells of changes to interfaces,
// addresses and routes.
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

// pause is that between two looks at a socket that cannot be read.
const pause = 5 * time.Second

// Watcher is a netlink socket that the kernel tells of changes in a network
// namespace.
type Watcher struct {
	socket *nl.NetlinkSocket
	close  func()
	closed chan struct{}
}

// Open subscribes to groups (unix.RTNLGRP_LINK, …; below 32) in the network
// namespace of the calling thread. What changes after it has returned is told.
func Open(groups ...uint) (*Watcher, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return nil, fmt.Errorf("watch the network namespace: subscribe: %w", err)
	}
	w := &Watcher{socket: socket, closed: make(chan struct{})}
	w.close = sync.OnceFunc(func() {
		close(w.closed)
		socket.Close() // wakes Next
	})
	return w, nil
}

// Close ends the watch and a Next that waits. It may be called at any time and
// more than once.
func (w *Watcher) Close() { w.close() }

// Next waits until the kernel tells of changes, and until deadline at most, which
// may be zero: for ever. missed says that changes were not told, because they
// came faster than they were read or because the socket fails: whoever wants to
// know has to look. After Close it returns nothing, at once. It must not run at
// the same time as itself.
func (w *Watcher) Next(deadline time.Time) (messages []syscall.NetlinkMessage, missed bool) {
	for {
		var timeout unix.Timeval // zero: for ever
		if !deadline.IsZero() {
			timeout = unix.NsecToTimeval(max(time.Until(deadline), time.Millisecond).Nanoseconds())
		}
		_ = w.socket.SetReceiveTimeout(&timeout) // it cannot fail
		messages, from, err := w.socket.Receive()
		select {
		case <-w.closed:
			return nil, false
		default:
		}
		switch {
		case err == nil && from.Pid == nl.PidKernel:
			return messages, false
		case err == nil, errors.Is(err, unix.EINTR): // who has CAP_NET_ADMIN may send to the socket
		case errors.Is(err, unix.EAGAIN): // for as long as it was told to wait
			return nil, false
		case errors.Is(err, unix.ENOBUFS):
			return nil, true
		default: // no cause is known; the caller is made to look now and then
			select {
			case <-time.After(pause):
			case <-w.closed:
			}
			return nil, true
		}
	}
}
