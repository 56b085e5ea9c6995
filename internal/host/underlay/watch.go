package underlay

import (
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlwatch"
)

const (
	// settle is how long there must be no further change before one is
	// reported. Reconfiguring an interface takes several steps: a DHCP client
	// removes the old address before it adds the new one.
	settle = 200 * time.Millisecond
	// longest is the maximum delay of a report if changes keep coming, as on a
	// node where pods come and go.
	longest = time.Second
)

// Watch watches the interfaces and addresses in the network namespace of the
// calling thread until end, which must be called once. changes receives a value
// after one or more changes, when no further ones follow; it does not say what
// changed: use Stay and Choose to find out. All changes after Watch has returned
// are reported.
func Watch() (changes <-chan struct{}, end func(), err error) {
	w, err := nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return nil, nil, err
	}
	reports := make(chan struct{}, 1)
	var reporting sync.WaitGroup
	reporting.Go(func() { report(w, reports) })
	return reports, func() { w.Close(); reporting.Wait() }, nil
}

// source is an nlwatch.Watcher, or a fake one in tests.
type source interface {
	Next(deadline time.Time) (messages []syscall.NetlinkMessage, missed bool)
	Closed() bool
}

// report sends to reports when the changes that w receives have settled, until w is
// closed. A report that has not been received yet stands for later ones too.
func report(w source, reports chan<- struct{}) {
	var first, due time.Time // of the first unreported change, and of its report; zero: none
	for {
		messages, missed := w.Next(due)
		if w.Closed() {
			return
		}
		now := time.Now()
		if messages != nil || missed {
			if due.IsZero() {
				first = now
			}
			due = now.Add(min(settle, longest-now.Sub(first)))
		}
		if !due.IsZero() && !now.Before(due) {
			due = time.Time{}
			select {
			case reports <- struct{}{}:
			default:
			}
		}
	}
}
