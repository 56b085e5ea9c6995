package keep

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// settle is how long Run waits before looking at a device that changed,
	// since setting a device down and up again takes two steps. Entries and
	// routes are looked at immediately.
	settle = 50 * time.Millisecond
	// gap is the minimum time between two looks: with 5,000 peers, reading the
	// kernel's tables takes some 100 ms.
	gap = 50 * time.Millisecond
)

// listener is the state that Run keeps between notifications.
type listener struct {
	up   map[int]bool // devices by index, as of their last notification
	due  time.Time    // when to look next; zero: after the next change
	last time.Time    // time of the last look
}

// at schedules a look at t, but not sooner than gap after the last one.
func (l *listener) at(t time.Time) {
	if soonest := l.last.Add(gap); t.Before(soonest) {
		t = soonest
	}
	l.due = earlier(l.due, t)
}

// hear marks what the messages may have changed as dirty. The error reports
// that a device is gone.
func (k *Keeper) hear(l *listener, messages []syscall.NetlinkMessage, missed bool) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if missed {
		k.dirty = everything
		l.at(time.Now())
	}
	for _, m := range messages {
		concerned, wait, err := k.concerned(l.up, m)
		if err != nil {
			return err
		}
		if concerned != 0 {
			k.dirty |= concerned
			l.at(time.Now().Add(wait))
		}
	}
	return nil
}

// concerned returns the kinds that may differ from the wanted state after m,
// and the delay before looking at them. mu is held.
func (k *Keeper) concerned(up map[int]bool, m syscall.NetlinkMessage) (concerned kinds, wait time.Duration, err error) {
	deleted := false
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return 0, 0, nil
		}
		return k.linkConcerned(up, nl.DeserializeIfInfomsg(m.Data), m.Header.Type == unix.RTM_DELLINK)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) < unix.SizeofIfAddrmsg {
			return 0, 0, nil
		}
		// When a device loses its last address, the kernel removes its IPv4
		// routes without notification.
		index := int(nl.DeserializeIfAddrmsg(m.Data).Index)
		if k.device(index) != nil {
			return links | routes, settle, nil
		}
		if k.leadsThrough(index) {
			return routes, 0, nil
		}
	case unix.RTM_DELNEIGH:
		deleted = true
		fallthrough
	case unix.RTM_NEWNEIGH:
		if e, ok := parseEntry(m.Data); ok && k.want != nil && !k.asWanted(e, deleted) {
			return entries, 0, nil
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if m.Header.Pid != k.conn.Port() && k.routeConcerned(m.Data) {
			return routes, 0, nil
		}
	}
	return 0, 0, nil
}

// linkConcerned is the part of concerned that handles messages about devices.
func (k *Keeper) linkConcerned(up map[int]bool, info *nl.IfInfomsg, deleted bool) (kinds, time.Duration, error) {
	index, is := int(info.Index), info.Flags&unix.IFF_UP != 0
	d := k.device(index)
	if d != nil && info.Family != unix.AF_UNSPEC {
		return 0, 0, nil // a bridge announces changes of its ports with the same message type
	}
	if d != nil && deleted {
		return 0, 0, fmt.Errorf("interface %s: %w", d.Name, ErrDeviceGone)
	}
	was, known := up[index]
	up[index] = is
	if deleted {
		delete(up, index)
	}
	toggled := !known || was != is // otherwise the message concerns statistics or the carrier
	switch {
	case d != nil && toggled:
		return everything, settle, nil
	case d != nil:
		return links, settle, nil
	case toggled && k.leadsThrough(index):
		return routes, 0, nil
	}
	return 0, 0, nil
}

// device returns the kept device with this index, or nil if there is none.
func (k *Keeper) device(index int) *device {
	for _, d := range k.devices {
		if d.index == index {
			return d
		}
	}
	return nil
}

// leadsThrough reports whether a wanted route leads through the device.
func (k *Keeper) leadsThrough(index int) bool { return k.want != nil && k.want.devs[index] }

// asWanted reports whether the wanted entries are still in place after e was
// written or deleted.
func (k *Keeper) asWanted(e entry, deleted bool) bool {
	if e.bridge {
		to, wanted := k.want.fdb[fdbKey{e.index, e.mac}]
		return !wanted || !deleted && e.dst == to && e.permanent && e.plain
	}
	mac, wanted := k.want.neighs[neighKey{e.index, e.dst}]
	return !wanted || !deleted && e.mac == mac && e.permanent
}

// routeConcerned reports whether a message is about a route to the same
// destination as a wanted one, whatever its metric.
func (k *Keeper) routeConcerned(b []byte) bool {
	dst, ok := destination(b)
	if !ok || k.want == nil {
		return false
	}
	_, wanted := k.want.routes[routeKey{dst, 0}]
	_, last := k.want.routes[routeKey{dst, lastMetric}]
	return wanted || last
}

// destination returns the destination in a message about a route in table main.
func destination(b []byte) (dst netip.Prefix, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return dst, false
	}
	msg := nl.DeserializeRtMsg(b)
	attrs, err := nl.ParseRouteAttr(b[unix.SizeofRtMsg:])
	if err != nil || msg.Table != unix.RT_TABLE_MAIN {
		return dst, false
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.RTA_DST {
			addr, _ := netip.AddrFromSlice(net.IP(a.Value))
			dst = netip.PrefixFrom(addr, int(msg.Dst_len))
		}
	}
	return dst, dst.IsValid()
}
