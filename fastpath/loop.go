package fastpath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

// direction is one way through a shard: from a TUN queue to a socket or vice versa.
type direction interface {
	// poll moves a batch of what is ready, without blocking. It returns how
	// many bytes were read and whether there may be more. An error stops the
	// engine.
	poll() (bytes int, more bool, err error)
}

// allLooks is the number of polls of one direction after which a spinning thread
// polls all of them.
const allLooks = 8

// loop runs directions on one thread, each in turn, so that none waits for more
// than one batch of every other. It sleeps when none has anything to do.
type loop struct {
	directions []direction
	wake       waiter // for the descriptors of all directions
	spin       spinner
	stopping   *atomic.Bool
	c          *metrics.Direction // of the first

	woken bool // the thread has just slept; wake holds what is ready
	last  int  // the direction that last had something
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

// add adds the direction d to l. d may have work when fd is readable; c holds its
// counters.
func (l *loop) add(d direction, fd int, c *metrics.Direction) {
	l.directions = append(l.directions, d)
	l.wake.add(fd, unix.POLLIN)
	if l.c == nil {
		l.c = c
	}
}

// run forwards until the engine stops (it then returns nil) or a direction
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
// ended it; while spinning mostly the one that last had something, where the next
// packet of a flow is expected; otherwise all.
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
