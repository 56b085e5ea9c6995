package udp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlwatch"
	"github.com/twillnet/twill/internal/logging"
)

const (
	// settle is how long the device must be left alone before it is looked at:
	// who sets it down and up again takes two steps.
	settle = 50 * time.Millisecond
	// longest is how late that is where there is always another change.
	longest = 500 * time.Millisecond
	// retryAfter is how long what could not be put back rests, unless a change
	// comes before.
	retryAfter = 5 * time.Second
	// silence is for how long the same thing put back is not logged again:
	// another program may take it away each time.
	silence = time.Minute
)

// watch subscribes to what the kernel tells of changes.
func (l *link) watch() (err error) {
	l.events, err = nlwatch.Open(unix.RTNLGRP_LINK,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
	if err != nil {
		return fmt.Errorf("watch interface %s: %w", l.name, err)
	}
	return nil
}

// keep puts back what somebody takes away from the device or changes of it,
// until ctx is done. It takes no notice of a device that is deleted: that ends
// the engine.
func (l *link) keep(ctx context.Context) {
	defer context.AfterFunc(ctx, l.events.Close)() // wakes it
	var (
		due    time.Time // when the device is looked at; zero: when it changes
		latest time.Time // that due may become; zero: there was no change
	)
	for {
		messages, missed := l.events.Next(due)
		if ctx.Err() != nil {
			return
		}
		if missed || slices.ContainsFunc(messages, l.concerned) {
			now := time.Now()
			if latest.IsZero() {
				latest = now.Add(longest)
			}
			if due = now.Add(settle); due.After(latest) {
				due = latest
			}
		}
		if !due.IsZero() && !time.Now().Before(due) {
			due, latest = time.Time{}, time.Time{}
			if !l.restore() {
				due = time.Now().Add(retryAfter)
			}
		}
	}
}

// concerned says whether the device may be another after what m tells. A route
// that replaces one of ours is told without its name.
func (l *link) concerned(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return len(m.Data) >= unix.SizeofIfInfomsg && int(nl.DeserializeIfInfomsg(m.Data).Index) == l.index
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(m.Data) >= unix.SizeofIfAddrmsg && int(nl.DeserializeIfAddrmsg(m.Data).Index) == l.index
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && l.routeConcerned(m.Data)
	}
	return false
}

func (l *link) routeConcerned(route []byte) bool {
	bits := int(nl.DeserializeRtMsg(route).Dst_len)
	attrs, err := nl.ParseRouteAttr(route[unix.SizeofRtMsg:])
	if err != nil {
		return true // look for oneself
	}
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.RTA_OIF && len(a.Value) == 4 && int(nl.NativeEndian().Uint32(a.Value)) == l.index:
			return true
		case a.Attr.Type == unix.RTA_DST && slices.ContainsFunc(l.routes, func(r *netlink.Route) bool {
			return sameDst(r.Dst, a.Value, bits)
		}):
			return true
		}
	}
	return false
}

func sameDst(n *net.IPNet, addr []byte, bits int) bool {
	ones, _ := n.Mask.Size()
	return ones == bits && bytes.Equal(n.IP, addr)
}

// told is what has been logged of the device, so that it is not logged again.
type told struct {
	set   string // what was put back
	at    time.Time
	fault string // why something could not be; empty: nothing is missing
}

// restore puts back what is not as it should be, and says whether all is.
func (l *link) restore() bool {
	set, err := l.apply()
	if errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) {
		return true
	}
	if what := strings.Join(set, ", "); what != "" && (what != l.told.set || time.Since(l.told.at) > silence) {
		l.told.set, l.told.at = what, time.Now()
		l.logger.Info("somebody has changed the device, put back", logging.KeyDevice, l.name, logging.KeyNow, what)
	}
	switch {
	case err == nil:
		l.told.fault = ""
	case err.Error() != l.told.fault:
		l.told.fault = err.Error()
		l.logger.Warn("device is not as it should be", logging.KeyDevice, l.name, logging.KeyError, err)
	}
	return err == nil
}

// close ends the watch. The interface goes with the device.
func (l *link) close() {
	if l.events != nil {
		l.events.Close()
	}
	l.nl.Close()
}
