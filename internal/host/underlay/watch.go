package underlay

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long there must be no further change before one is
	// reported. Reconfiguring an interface takes several steps: a DHCP client
	// removes the old address before it adds the new one.
	settle = 200 * time.Millisecond
	// longest is the maximum delay of a report if changes keep coming, as on a
	// node where pods come and go.
	longest = time.Second
	// pause is the delay before a socket that cannot be read is tried again.
	pause = time.Second
)

// Watcher reports that interfaces or their addresses have changed. It does not
// report what changed: use Stay and Choose to find out.
type Watcher struct {
	socket  *nl.NetlinkSocket
	changes chan struct{} // holds one
	closing chan struct{} // closed to end run
	done    chan struct{} // closed when run has ended
}

// Watch starts watching the network namespace of the calling thread. It reports
// all changes after it has returned.
func Watch() (*Watcher, error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: subscribe: %w", err)
	}
	w := &Watcher{socket, make(chan struct{}, 1), make(chan struct{}), make(chan struct{})}
	go w.run()
	return w, nil
}

// Changes returns a channel that receives once after one or more changes, when
// no further ones follow.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Close stops the watcher. It may be called once.
func (w *Watcher) Close() {
	close(w.closing)
	w.socket.Close() // wakes run
	<-w.done
}

func (w *Watcher) run() {
	defer close(w.done)
	var first time.Time // time of the first unreported change; zero: none
	for {
		_, _, err := w.socket.Receive()
		select {
		case <-w.closing:
			return
		default:
		}
		quiet := false
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // ENOBUFS: notifications were lost
		case errors.Is(err, unix.EAGAIN): // the receive timeout expired
			quiet = true
		default: // unknown error: have the caller check periodically
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
			first, wait = time.Time{}, 0 // no timeout until the next change
		}
		timeout := unix.NsecToTimeval(wait.Nanoseconds())
		_ = w.socket.SetReceiveTimeout(&timeout) // cannot fail
	}
}

func (w *Watcher) tell() {
	select {
	case w.changes <- struct{}{}:
	default: // the previous one has not been received yet
	}
}
