package fastpath

import (
	"sync/atomic"

	"github.com/twillnet/twill/metrics"
)

// direction is one way through a shard: from a TUN queue to a socket or back.
type direction interface {
	// poll moves a batch of what is ready, without blocking. It returns how
	// many bytes came in and whether there may be more. An error ends the
	// engine.
	poll() (bytes int, more bool, err error)
}

// loop runs directions on one thread, each in its turn, so that none has to
// wait for more than a batch of every other. It sleeps when none finds anything.
type loop struct {
	directions []direction
	wake       waiter // for the descriptors of all directions
	spin       spinner
	stopping   *atomic.Bool
	c          *metrics.Direction
}

// run forwards until the engine stops (the error is nil then) or a direction
// fails.
func (l *loop) run() error {
	for !l.stopping.Load() {
		bytes, more := 0, false
		for _, d := range l.directions {
			n, again, err := d.poll()
			if err != nil {
				return err
			}
			bytes += n
			more = more || again
		}
		if bytes > 0 && l.spin.spinning() {
			l.c.SpinHits.Add(1)
		}
		if l.spin.again(bytes) || more {
			continue
		}
		l.c.Sleeps.Add(1)
		if !l.wake.wait() {
			return nil
		}
	}
	return nil
}
