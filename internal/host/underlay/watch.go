package underlay

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long nothing must change before a change is told. What
	// moves an interface takes several steps: a DHCP client takes the old
	// address away before it adds the new one.
	settle = 200 * time.Millisecond
	// longest is how late a change is told where there is always another one,
	// as on a node where pods come and go.
	longest = time.Second
	// pause is that between two looks at a socket that cannot be read.
	pause = time.Second
)

// Watcher tells that interfaces or their addresses have changed. It does not
// say what: Stay and Choose find out what comes of it.
type Watcher struct {
	socket  *nl.NetlinkSocket
	changes chan struct{} // holds one
	closing chan struct{} // closed to end run
	done    chan struct{} // closed when run has ended
}

// Watch begins to watch the network namespace of the calling thread. What
// happens after it has returned will be told.
func Watch() (*Watcher, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: subscribe: %w", err)
	}
	w := &Watcher{socket, make(chan struct{}, 1), make(chan struct{}), make(chan struct{})}
	go w.run()
	return w, nil
}

// Changes receives once after one or more changes, when all is quiet again.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Close ends the watch. It may be called once.
func (w *Watcher) Close() {
	close(w.closing)
	w.socket.Close() // wakes run
	<-w.done
}

func (w *Watcher) run() {
	defer close(w.done)
	var first time.Time // of the changes that are not told yet; zero: there are none
	for {
		_, _, err := w.socket.Receive()
		select {
		case <-w.closing:
			return
		default:
		}
		quiet := false
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // more happened than there was room for
		case errors.Is(err, unix.EAGAIN): // for as long as it was told to wait
			quiet = true
		default: // no cause is known; the caller is made to look now and then
			select {
			case <-time.After(pause):
			case <-w.closing:
				return
			}
		}
		if first.IsZero() {
			first = time.Now()
		}
		wait := min(settle, longest-time.Since(first))
		if quiet || wait < time.Millisecond {
			w.tell()
			first, wait = time.Time{}, 0 // until the next change
		}
		timeout := unix.NsecToTimeval(wait.Nanoseconds())
		_ = w.socket.SetReceiveTimeout(&timeout) // it cannot fail
	}
}

func (w *Watcher) tell() {
	select {
	case w.changes <- struct{}{}:
	default: // the last one has not been taken yet
	}
}
