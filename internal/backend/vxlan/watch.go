package vxlan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

const (
	// settle is how long after a change the interface is looked at: who sets
	// it down and up again takes two steps. Entries are looked at at once.
	settle = 50 * time.Millisecond
	// retryAfter is how long what could not be put back rests, unless a change
	// comes before.
	retryAfter = 5 * time.Second
	// silence is for how long the same thing put back is not logged again.
	silence = time.Minute
)

// Run puts back what somebody takes away from the device, or changes of it or
// its entries, until ctx is done (the error is nil then) or the device is gone,
// which is an error that wraps ErrDeviceGone. It may be called once, at the same
// time as Add and Retain. What has changed before it was called is put back
// first.
//
// Whoever takes away the same thing again and again has it put back less and
// less often, every 5 s in the end.
func (d *Device) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, d.events.Close)() // wakes it
	var p pace
	due := time.Now() // when the device is looked at; zero: when it changes
	for {
		if !due.IsZero() && !time.Now().Before(due) {
			set, err := d.look()
			if errors.Is(err, ErrDeviceGone) {
				return err
			}
			if ctx.Err() != nil {
				return nil
			}
			d.tell(set, err)
			if due = (time.Time{}); err != nil {
				due = time.Now().Add(retryAfter)
			}
			if len(set) > 0 {
				p.put(time.Now())
			}
		}
		messages, missed := d.events.Next(due)
		if ctx.Err() != nil {
			return nil
		}
		wait, err := d.concerns(messages, missed)
		if err != nil {
			return err
		}
		if wait != never {
			if at := p.earliest(time.Now().Add(wait)); due.IsZero() || at.Before(due) {
				due = at
			}
		}
	}
}

// never is a wait that has no end.
const never time.Duration = -1

// concerns returns how long the device is to be left alone yet before it is
// looked at, after what the kernel tells.
func (d *Device) concerns(messages []syscall.NetlinkMessage, missed bool) (time.Duration, error) {
	if missed {
		return 0, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	wait := never
	for _, m := range messages {
		w, err := d.concern(m)
		if err != nil {
			return never, err
		}
		if w != never && (wait == never || w < wait) {
			wait = w
		}
	}
	return wait, nil
}

// concern returns how long the device is to be left alone after what m tells.
// mu is held.
func (d *Device) concern(m syscall.NetlinkMessage) (wait time.Duration, err error) {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) < unix.SizeofIfInfomsg {
			return never, nil
		}
		// A bridge tells of its ports with the same message.
		info := nl.DeserializeIfInfomsg(m.Data)
		if int(info.Index) != d.index || info.Family != unix.AF_UNSPEC {
			return never, nil
		}
		if m.Header.Type == unix.RTM_DELLINK {
			return never, fmt.Errorf("interface %s: %w", d.name, ErrDeviceGone)
		}
		return settle, nil
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if len(m.Data) >= unix.SizeofIfAddrmsg && int(nl.DeserializeIfAddrmsg(m.Data).Index) == d.index {
			return settle, nil
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if n, ok := parseNeigh(m.Data); ok && n.index == d.index && !d.asWanted(n, m.Header.Type == unix.RTM_DELNEIGH) {
			return 0, nil
		}
	}
	return never, nil
}

// asWanted reports whether an entry that was written or deleted leaves what is
// wanted as it is. mu is held.
func (d *Device) asWanted(n neighMessage, deleted bool) bool {
	e := &d.entries
	if n.bridge {
		to, wanted := e.endpoints[n.mac]
		return !wanted || !deleted && n.dst == to && n.permanent && n.plain
	}
	p, wanted := e.want[n.dst]
	return !wanted || !deleted && n.mac == p.mac && n.permanent
}

// look puts back what is not as it should be, and returns in words what that
// was.
func (d *Device) look() (set []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	set, err = d.apply()
	if errors.Is(err, ErrDeviceGone) {
		return nil, err
	}
	if err := d.load(); err != nil {
		return set, err
	}
	n, failed, werr := d.write(slices.Collect(maps.Keys(d.entries.want)))
	if werr != nil {
		return set, d.gone(errors.Join(err, werr))
	}
	if n != (written{}) {
		set = append(set, fmt.Sprintf("%d neighbours, %d FDB entries", n.neigh, n.fdb))
	}
	for _, bad := range failed {
		// One says enough.
		return set, d.gone(errors.Join(err, fmt.Errorf("interface %s: %d peers cannot be reached: %w", d.name, len(failed), bad)))
	}
	return set, err
}

// told is what has been logged of the device, so that it is not logged again.
type told struct {
	set   string // what was put back
	at    time.Time
	fault string // why something could not be; empty: nothing is missing
}

// tell logs what a look has brought.
func (d *Device) tell(set []string, err error) {
	if what := strings.Join(set, ", "); what != "" && (what != d.told.set || time.Since(d.told.at) > silence) {
		d.told.set, d.told.at = what, time.Now()
		d.cfg.Logger.Info("somebody has changed the device, put back", logging.KeyDevice, d.name, logging.KeyNow, what)
	}
	switch {
	case err == nil:
		d.told.fault = ""
	case err.Error() != d.told.fault:
		d.told.fault = err.Error()
		d.cfg.Logger.Warn("device is not as it should be", logging.KeyDevice, d.name, logging.KeyError, err)
	}
}

// pace bounds how often something is put back.
type pace struct {
	last time.Time     // when something was
	gap  time.Duration // from then to the next time
}

const (
	firstGap   = 100 * time.Millisecond
	longestGap = 5 * time.Second
	// calm is how long nobody must change anything for a fight to be over.
	calm = time.Minute
)

// put notes that something was put back.
func (p *pace) put(now time.Time) {
	if p.last.IsZero() || now.Sub(p.last) > calm {
		p.gap = firstGap
	} else {
		p.gap = min(2*p.gap, longestGap)
	}
	p.last = now
}

// earliest returns when something may be put back that is due at t.
func (p *pace) earliest(t time.Time) time.Time {
	if next := p.last.Add(p.gap); next.After(t) {
		return next
	}
	return t
}
