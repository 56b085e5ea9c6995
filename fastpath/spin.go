package fastpath

import (
	"errors"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// spinTime is how long a thread polls for the next packet before it
	// sleeps: longer than a request and its answer take on a local network.
	// Waking up takes 20 to 50 µs on a virtual machine.
	spinTime = 150 * time.Microsecond
	// spinBytes is the largest batch after which a thread spins: in a bulk
	// transfer spinning would take CPU time from the processes that produce
	// the packets.
	spinBytes = 4096
	// bulkTime is how long after a larger batch no thread of the engine spins; the
	// acknowledgements of a bulk transfer are small.
	bulkTime = time.Millisecond
	// maxSpinSkips limits how many sleeps pass without spinning after spinning has
	// found nothing. It bounds the cost of spinning when packets are rare: spinTime
	// every 256 sleeps.
	maxSpinSkips = 255
)

// spinner decides whether a thread that has found nothing polls again instead
// of sleeping. It belongs to that thread. The zero spinner never spins.
type spinner struct {
	bulk  *atomic.Int64 // when the engine last had a large batch; nil: no spinning
	slots *atomic.Int32 // how many more threads of the engine may spin
	until time.Duration // end of the current spin, since clockStart; 0: none
	skip  int           // sleeps left without spinning
	skips int           // the value of skip after the next fruitless spin
}

var clockStart = time.Now()

// now reads a monotonic clock.
func now() time.Duration { return time.Since(clockStart) }

// again reports whether to poll again at once, given the number of bytes that the last
// poll found. Before it returns true, it yields to other threads.
func (s *spinner) again(found int) bool {
	switch {
	case s.bulk == nil, found == 0 && s.until == 0:
		return false
	case found > spinBytes:
		s.bulk.Store(int64(now()))
		s.end()
		return false
	}
	t := now()
	switch {
	case t-time.Duration(s.bulk.Load()) < bulkTime:
		s.end()
		return false
	case found > 0 && s.until != 0: // spinning has paid off
		s.skips = 0
	case found > 0:
		if !s.begin() {
			return false
		}
	case t > s.until:
		s.end()
		s.skip, s.skips = s.skips, min(2*s.skips+1, maxSpinSkips)
		return false
	}
	if found > 0 {
		s.until = t + spinTime
	}
	_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	return true
}

// spinning reports whether the last poll was part of a spin.
func (s *spinner) spinning() bool { return s.until != 0 }

// begin acquires a slot, unless it is too early or none is free.
func (s *spinner) begin() bool {
	if s.skip > 0 {
		s.skip--
		return false
	}
	if s.slots.Add(-1) < 0 {
		s.slots.Add(1)
		return false
	}
	return true
}

// end releases the slot if one is held.
func (s *spinner) end() {
	if s.until != 0 {
		s.until = 0
		s.slots.Add(1)
	}
}

// probeSpin reports whether spinning can be useful on this host.
func probeSpin() (string, error) {
	if runtime.NumCPU() < 2 {
		return "", errors.New("only one CPU")
	}
	return "granted: up to " + spinTime.String() + " before a sleep", nil
}

// spinThreads returns how many threads of an engine may spin at the same time: as many
// as keep half of the CPUs busy, but at least the two of a pair, one of which receives
// the request and the other the answer. They yield to every other runnable thread
// (sched_yield).
func spinThreads() int { return max(2, runtime.NumCPU()/2) }
