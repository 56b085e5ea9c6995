package fastpath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

// direction is one way through a shard: from a TUN queue to a socket or back.
type direction interface {
	// poll moves a batch of what is ready, without blocking. It returns how
	// many bytes came in and whether there may be more. An error ends the
	// engine.
	poll() (bytes int, more bool, err error)
}

// allLooks is after how many looks at one direction a spinning thread looks at
// all.
const allLooks = 8

// loop runs directions on one thread, each in its turn, so that none has to
// wait for more than a batch of every other. It sleeps when none finds anything.
type loop struct {
	directions []direction
	wake       waiter // for the descriptors of all directions
	spin       spinner
	stopping   *atomic.Bool
	c          *metrics.Direction // of the first

	woken bool // from the sleep that wake describes
	last  int  // the direction that had something last
	looks uint
}

// newLoop returns a loop of e without directions.
func newLoop(e *Engine) *loop {
	l := &loop{wake: newWaiter(e.stop), stopping: &e.stopping}
	if e.spinSlots.Load() > 0 {
		l.spin = spinner{bulk: &e.bulk, slots: &e.spinSlots}
	}
	return l
}

// add makes d one more direction of l. There may be something for it to do when
// fd is readable; c are its counters.
func (l *loop) add(d direction, fd int, c *metrics.Direction) {
	l.directions = append(l.directions, d)
	l.wake.add(fd, unix.POLLIN)
	if l.c == nil {
		l.c = c
	}
}

// run forwards until the engine stops (the error is nil then) or a direction
// fails.
func (l *loop) run() error {
	for !l.stopping.Load() {
		bytes, more, err := l.look()
		if err != nil {
			return err
		}
		if bytes > 0 && l.spin.spinning() {
			l.c.SpinHits.Add(1)
		}
		if l.spin.again(bytes) || more {
			continue
		}
		l.c.Sleeps.Add(1)
		if ready, err := l.wake.wait(); !ready {
			return err
		}
		l.woken = true
	}
	return nil
}

// look polls the directions that may have something: after a sleep those that
// ended it; while spinning mostly the one that had something last, where the next
// packet of a flow comes; else all.
func (l *loop) look() (bytes int, more bool, err error) {
	l.looks++
	narrow := l.spin.spinning() && l.looks%allLooks != 0
	for i, d := range l.directions {
		if l.woken && !l.wake.ready(i) || narrow && i != l.last {
			continue
		}
		n, again, err := d.poll()
		if err != nil {
			return 0, false, err
		}
		if n > 0 {
			l.last = i
		}
		bytes += n
		more = more || again
	}
	l.woken = false
	return bytes, more, nil
}
