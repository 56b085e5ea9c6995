package routes

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// gap is that between two looks at the kernel's routes: of 5,000 they are
	// read in some 30 ms.
	gap = 50 * time.Millisecond
	// retryAfter is how long a route rests that could not be had, unless a change
	// comes before.
	retryAfter = 5 * time.Second
)

// Run puts back what others remove or change, as soon as the kernel tells of it,
// until ctx is done; the error is nil then. It does nothing before the first Set. A
// route that is taken away again and again is put back at longer and longer
// intervals. Run may be called once.
func (t *Table) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, t.events.Close)() // wakes it
	t.follow(true)
	defer t.follow(false)
	up := make(map[int]bool) // devices that were told to be up
	var last time.Time       // that the routes were looked at
	due := time.Now()        // when they are looked at; zero: when something changes
	for ctx.Err() == nil {
		if !due.IsZero() && !time.Now().Before(due) {
			due = t.restore()
			last = time.Now()
		}
		messages, missed := t.events.Next(due)
		if missed {
			due = earlier(due, last.Add(gap))
		}
		for _, m := range messages {
			if concerned, at := t.concerned(m, up); concerned {
				if soon := last.Add(gap); at.Before(soon) {
					at = soon
				}
				due = earlier(due, at)
			}
		}
	}
	return nil
}

func (t *Table) follow(on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.followed = on
}

// restore puts back what is not as it should be. It returns when to look again
// if nothing is told; zero: never.
func (t *Table) restore() (due time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.want == nil {
		return due // before Set nobody knows which routes of an earlier run are to stay
	}
	o, err := t.apply(true)
	t.report(o, err)
	if err != nil || len(o.failures) > 0 {
		return earlier(o.due, time.Now().Add(retryAfter))
	}
	return o.due
}

// concerned says whether a route that is wanted may be gone or may have become
// possible after what m tells, and when to look: zero for at once.
func (t *Table) concerned(m syscall.NetlinkMessage, up map[int]bool) (yes bool, at time.Time) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return false, at
		}
		info := nl.DeserializeIfInfomsg(m.Data)
		index, is := int(info.Index), info.Flags&unix.IFF_UP != 0
		was, known := up[index]
		if m.Header.Type == unix.RTM_DELLINK {
			delete(up, index)
		} else {
			up[index] = is
		}
		// Statistics and the carrier are told as well.
		return (!known || was != is) && t.uses(index), at
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return len(m.Data) >= unix.SizeofIfAddrmsg && t.uses(int(nl.DeserializeIfAddrmsg(m.Data).Index)), at
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if m.Header.Pid == t.conn.Port() { // our own doing
			return false, at
		}
		dst, ok := destination(m.Data)
		return ok && t.wants(dst, &at), at
	}
	return false, at
}

// uses reports whether a wanted route leads through the device.
func (t *Table) uses(index int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.devs[index]
}

// wants reports whether a route to dst is wanted, and since when it has rested
// enough to be put back.
func (t *Table) wants(dst netip.Prefix, at *time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	*at = t.resting(dst, time.Now())
	_, ok := t.want[dst]
	return ok
}

// destination returns the Dst of a route message of table main.
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
