// Package probe pings each peer of a node at an interval, by the way of its pods'
// packets, and keeps what came of it: round-trip times, loss, and when each peer was
// heard last, whichever backend leads to it.
package probe

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics/prom"
)

const (
	// patience is how long a probe may be on its way. It is longer than any
	// round-trip time on Earth with full queues at both ends.
	patience = 2 * time.Second
	// atOnce bounds the answers that are read before the loop does something else.
	atOnce = 256
	// longestWait bounds how late the end of the context is noticed.
	longestWait = 100 * time.Millisecond
	// floodPause is the pause after answers that were all to pings of other programs.
	// Without it, a host that floods this one with such answers would keep a CPU busy.
	floodPause = 5 * time.Millisecond
)

// Sockets send and receive pings; they are [echo.Sockets] unless a test replaces them.
type Sockets interface {
	Send(p echo.Ping, seq uint16)
	Receive(most int, got func(from netip.Addr, seq uint16))
	Wait(time.Duration) error
}

// Loop probes the peers of a node. Run must not be called twice at the same time; the
// other methods are safe for concurrent use.
type Loop struct {
	interval time.Duration
	peers    func() []status.Peer
	metrics  *prom.Probes

	results results

	// The rest belongs to Run.
	waiting map[uint16]sent
	next    uint16 // sequence number of the next probe
}

// sent is a probe without an answer.
type sent struct {
	to key
	at time.Time
}

// New returns a loop that probes each peer once per interval. peers returns those that
// there are now. What is found is also counted in m.
func New(interval time.Duration, peers func() []status.Peer, m *prom.Probes) *Loop {
	return &Loop{
		interval: interval, peers: peers, metrics: m,
		results: results{of: make(map[key]*result), silent: make(map[string]int), metrics: m},
	}
}

// Run probes until ctx is done.
func (l *Loop) Run(ctx context.Context, sockets Sockets) {
	l.waiting = make(map[uint16]sent)
	l.next = uint16(rand.Uint32()) // so that other hosts have to guess it
	for ctx.Err() == nil {
		l.round(ctx, sockets)
	}
}

// round probes each peer once. The probes are spread over the interval, so that many
// peers cause no burst.
func (l *Loop) round(ctx context.Context, sockets Sockets) {
	start := time.Now()
	peers := l.peers()
	l.results.keep(peers)
	for i := range peers {
		l.wait(ctx, sockets, start.Add(l.interval*time.Duration(i)/time.Duration(len(peers))))
		if ctx.Err() != nil {
			return
		}
		to := peers[i].Target()
		if !to.IsValid() {
			continue
		}
		l.waiting[l.next] = sent{keyOf(&peers[i]), time.Now()}
		sockets.Send(echo.Ping{To: to, Size: echo.Smallest}, l.next)
		l.next++
	}
	l.wait(ctx, sockets, start.Add(l.interval))
}

// wait takes answers until a time, or until ctx is done.
func (l *Loop) wait(ctx context.Context, sockets Sockets, until time.Time) {
	for ctx.Err() == nil {
		l.receive(sockets)
		left := time.Until(until)
		switch {
		case left <= 0:
			return
		case len(l.waiting) > 0:
			if sockets.Wait(min(left, longestWait)) == nil {
				continue
			}
			left = min(left, longestWait) // the sockets cannot be waited for
		}
		select {
		case <-ctx.Done():
		case <-time.After(left):
		}
	}
}

// receive takes the answers that have arrived, and gives up probes that were on their way
// for too long. An answer is recognized by the number of its probe, since it may have
// another source than the probe's destination: see echo.
func (l *Loop) receive(sockets Sockets) {
	all, own := 0, 0
	sockets.Receive(atOnce, func(_ netip.Addr, seq uint16) {
		all++
		if s, ok := l.waiting[seq]; ok {
			own++
			delete(l.waiting, seq)
			now := time.Now()
			l.results.answered(s.to, now.Sub(s.at), now)
		}
	})
	if all > 0 && own == 0 {
		time.Sleep(floodPause)
	}
	for seq, s := range l.waiting {
		if time.Since(s.at) > patience {
			delete(l.waiting, seq)
			l.results.lost(s.to)
		}
	}
}

// Fill adds to peers what is known of them.
func (l *Loop) Fill(peers []status.Peer) { l.results.fill(peers, time.Now()) }
