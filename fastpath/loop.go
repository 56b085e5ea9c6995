package fastpath

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
)

// direction is one way through a shard: from a TUN queue to a socket or vice versa.
type direction interface {
	// poll moves a batch of what is ready, without blocking. The batch is a small one if
	// brief is set, so that other directions do not wait for long. poll returns how many
	// bytes were read and whether there may be more; if so, it may have kept a part of
	// the batch for the next poll, unless the engine is stopping. An error stops the
	// engine.
	poll(brief bool) (bytes int, more bool, err error)
}

const (
	// briefBytes ends a brief batch, in bytes. A super-packet of 64 KiB is sent in one
	// train and a short rest; two of them take three messages.
	briefBytes = 64 << 10
	// briefLooks is the number of looks for which the size of a batch is remembered: some
	// milliseconds during a bulk transfer, so that consecutive requests count.
	briefLooks = 256
)

// turn is a direction in a loop.
type turn struct {
	direction
	// small and large are the numbers of the looks in which it last had a batch of at
	// most spinBytes, and a larger one; 0: never.
	small, large uint
}

// allLooks is the number of polls of one direction after which a spinning thread
// polls all of them.
const allLooks = 8

// loop runs directions on one thread, each in turn, so that none waits for more
// than one batch of every other. It sleeps when none has anything to do.
type loop struct {
	turns    []turn
	wake     waiter // for the descriptors of all directions
	brief    bool   // a bulk transfer has brief batches if there are requests too
	spin     spinner
	stopping *atomic.Bool
	c        *metrics.Direction // of the first

	woken bool // the thread has just slept; wake holds what is ready
	last  int  // the direction that last had packets
	looks uint
}

// newLoop returns a loop of e without directions.
func newLoop(e *Engine) *loop {
	l := &loop{wake: newWaiter(e.stop), brief: e.brief, stopping: &e.stopping}
	if e.spinSlots.Load() > 0 {
		l.spin = spinner{bulk: &e.bulk, slots: &e.spinSlots}
	}
	return l
}

// add adds the direction d to l. d may have work when fd is readable; c holds its
// counters.
func (l *loop) add(d direction, fd int, c *metrics.Direction) {
	l.turns = append(l.turns, turn{direction: d})
	l.wake.add(fd, unix.POLLIN)
	if l.c == nil {
		l.c = c
	}
}

// run forwards until the engine stops (it then returns nil) or a direction
// fails.
func (l *loop) run() error {
	more := false
	for !l.stopping.Load() {
		var bytes int
		var err error
		if bytes, more, err = l.look(); err != nil {
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
	if more { // a direction may have kept part of a batch
		_, _, err := l.look()
		return err
	}
	return nil
}

// look polls the directions that may have packets: after a sleep, those that
// ended it; while spinning, mostly the one that last had packets, where the next
// packet of a flow is expected; otherwise all.
func (l *loop) look() (bytes int, more bool, err error) {
	l.looks++
	narrow := l.spin.spinning() && l.looks%allLooks != 0
	for i := range l.turns {
		if l.woken && !l.wake.ready(i) || narrow && i != l.last {
			continue
		}
		t := &l.turns[i]
		brief := l.brief && l.recent(t.large) && l.light(i)
		n, again, err := t.poll(brief)
		if err != nil {
			return 0, false, err
		}
		if n > 0 {
			l.last = i
			if brief {
				l.c.BriefBatches.Add(1)
			}
		}
		if n > spinBytes {
			t.large = l.looks
		} else if n > 0 {
			t.small = l.looks
		}
		bytes += n
		more = more || again
	}
	l.woken = false
	return bytes, more, nil
}

// light reports whether a direction other than the i-th carries little: requests and
// answers, which should not wait for long batches of a bulk transfer. A transfer has small
// batches too, so a direction that also has large ones does not count.
func (l *loop) light(i int) bool {
	for j := range l.turns {
		if t := &l.turns[j]; j != i && l.recent(t.small) && !l.recent(t.large) {
			return true
		}
	}
	return false
}

// recent reports whether the look with the number n was one of the last briefLooks.
func (l *loop) recent(n uint) bool { return n != 0 && l.looks-n < briefLooks }
