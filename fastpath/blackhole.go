package fastpath

import (
	"log/slog"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/logging"
)

// A black hole loses packets above some size without an ICMP error. A prober detects it
// with packets of known sizes, as RFC 4821 and RFC 8899 describe: echo requests to the
// tunnel address of a peer, which its kernel answers, whatever daemon runs there. If
// small requests are answered but full-size ones are not, the prober searches for the
// largest size that passes, and packets to the peer are then treated as on any narrow
// path. If small requests are not answered either, nothing is concluded.

const (
	// probesAtOnce is the maximum number of peers with a round of probes in progress.
	probesAtOnce = 16
	// A round ends when its largest probe is answered, or after probeWait ticks.
	probeWait = 2
	// probeEvery and probeNarrow are the ticks between rounds to a peer in use:
	// probeEvery if full-size packets reach it, probeNarrow if they do not.
	probeEvery, probeNarrow = 10, 30
	// probeFailures is the number of consecutive rounds in which the expected size is
	// not answered before a search for a smaller one begins.
	probeFailures = 2
	// probeSteps is how many sizes a round of a search tries.
	probeSteps = 12
	// probeSilent is the number of rounds without any answer that end a search.
	probeSilent = 5
	// probeSmall is the size of the probe that passes everywhere.
	probeSmall = encap.MinEcho
)

// probing is what a prober knows about a peer. Sizes are those of inner packets, in bytes.
type probing struct {
	due    int // ticks until the next round
	failed int // rounds in a row, see probeFailures
	silent int // rounds in a row without any answer

	low, high int // bounds of a search: the largest size known to pass, the smallest known not to; 0: no search

	sizes []int // of the round in progress, the largest first; empty: there is none
	first uint16
	age   int // of the round, in ticks
	best  int // largest size answered in it
}

// prober looks for black holes. It belongs to the goroutine of a paths.
type prober struct {
	// send sends an echo request of size bytes; the answer has its number.
	send func(to netip.Addr, size int, number uint16)
	// answers calls got with the sender and the number of each answer since the last
	// call.
	answers func(got func(from netip.Addr, number uint16))
	close   func() error
	log     *slog.Logger

	waiting map[uint16]probe
	next    uint16 // number of the next probe
	rounds  int    // in progress
}

// newProber returns a prober that uses sockets.
func newProber(sockets *echo.Sockets, log *slog.Logger) *prober {
	return &prober{
		send:    func(to netip.Addr, size int, number uint16) { sockets.Send(echo.Ping{To: to, Size: size}, number) },
		answers: func(got func(netip.Addr, uint16)) { sockets.Receive(2*probesAtOnce*(probeSteps+4), got) },
		close:   sockets.Close, log: log, waiting: make(map[uint16]probe),
	}
}

// probe is an echo request that has not been answered.
type probe struct {
	of   *probing
	to   netip.Addr
	size int
}

// receive begins a tick: it reads the answers that have arrived. peers are all current
// peers.
func (x *prober) receive(peers []*Peer) {
	x.rounds = 0
	for _, p := range peers {
		if len(p.path.watched.probing.sizes) > 0 {
			x.rounds++
		}
	}
	if x.rounds == 0 {
		clear(x.waiting) // drops those of former peers
	}
	x.answers(func(from netip.Addr, number uint16) {
		// Another host can guess the number.
		if p, ok := x.waiting[number]; ok && p.to == from {
			p.of.best = max(p.of.best, p.size)
			delete(x.waiting, number)
		}
	})
}

// tick advances the probing of a peer by one tick. used reports whether packets were sent
// to it since the last one. to is its tunnel address, and widest returns the size that
// should pass.
func (x *prober) tick(peer *Peer, to netip.Addr, used bool, widest func() int) {
	s := &peer.path.watched.probing
	if len(s.sizes) > 0 {
		if s.age++; s.best < s.sizes[0] && s.age < probeWait {
			return
		}
		x.judge(peer, widest())
		x.end(s)
	}
	if s.due > 0 {
		s.due--
		return
	}
	if x.rounds < probesAtOnce && to.IsValid() && (used || s.failed > 0 || s.high > 0) {
		x.begin(peer, to, widest())
	}
}

// begin sends the probes of a round, the smallest first. A probe that is smaller than the
// packet before it could leave in the same train (see sends), and a router drops a train
// as a whole if it has not been segmented yet.
func (x *prober) begin(peer *Peer, to netip.Addr, widest int) {
	s := &peer.path.watched.probing
	s.sizes, s.first, s.age, s.best = s.plan(widest, peer.Widest()), x.next, 0, 0
	x.rounds++
	for _, size := range slices.Backward(s.sizes) {
		x.waiting[x.next] = probe{s, to, size}
		x.send(to, size, x.next)
		x.next++
	}
	peer.path.watched.tx += uint64(len(s.sizes)) // probes do not count as use of the peer
}

// plan returns the sizes of the next round.
func (s *probing) plan(widest, limit int) []int {
	sizes := []int{probeSmall}
	switch {
	case s.high > 0:
		sizes = between(sizes, s.low, s.high)
	case limit > 0:
		sizes = append(between(append(sizes, limit, limit+1), limit, widest), widest)
	default:
		sizes = append(sizes, widest)
	}
	slices.Sort(sizes)
	slices.Reverse(sizes)
	return slices.Compact(sizes)
}

// between appends up to probeSteps sizes above low and below high.
func between(sizes []int, low, high int) []int {
	last := low
	for i := range probeSteps {
		if size := low + (high-low)*(i+1)/(probeSteps+1); size > last {
			sizes = append(sizes, size)
			last = size
		}
	}
	if last == low && high-low > 1 {
		sizes = append(sizes, low+1)
	}
	return sizes
}

// judge draws the conclusions of a round. widest is the size that should pass now, which
// may be smaller than at the beginning of the round if the kernel has learnt that.
func (x *prober) judge(peer *Peer, widest int) {
	s, limit := &peer.path.watched.probing, peer.Widest()
	if limit >= widest {
		limit = 0
		peer.path.limits.setWidest(0)
	}
	s.due = 0
	if s.best == 0 {
		s.failed = 0
		if s.silent++; s.high == 0 || s.silent >= probeSilent {
			s.low, s.high, s.due = 0, 0, probeEvery
		}
		return
	}
	s.silent = 0
	expected := widest
	if limit > 0 {
		expected = limit
	}
	if s.best >= widest || s.best == expected && s.high == 0 {
		peer.path.watched.concluded = true
	}
	switch {
	case s.best >= widest:
		*s = probing{due: probeEvery, sizes: s.sizes, first: s.first}
		if limit > 0 {
			peer.path.limits.setWidest(0)
			x.log.Info("path to peer carries full-size packets again", logging.KeyAddress, peer.Endpoint, logging.KeyMTU, widest)
		}
	case s.high > 0:
		s.narrow(s.best)
	case s.best > expected:
		s.narrow(s.best)
	case s.best == expected:
		s.failed, s.due = 0, probeNarrow
	default:
		if s.failed++; s.failed >= probeFailures {
			s.failed = 0
			s.narrow(s.best)
		}
	}
	if s.high-s.low == 1 {
		x.found(peer, s.low)
	}
}

// narrow continues a search, or begins one, after a round in which best passed.
func (s *probing) narrow(best int) {
	s.low = max(s.low, best)
	high := s.high
	for _, size := range s.sizes {
		if size > s.low && (high == 0 || size < high) {
			high = size
		}
	}
	s.high = high
}

// found ends a search: packets of up to size bytes pass.
func (x *prober) found(peer *Peer, size int) {
	s := &peer.path.watched.probing
	s.low, s.high, s.due = 0, 0, probeNarrow
	peer.path.watched.concluded = true
	if was := peer.Widest(); was != size {
		peer.path.limits.setWidest(size)
		x.log.Warn("path to peer loses larger packets without an ICMP error, packets are limited",
			logging.KeyAddress, peer.Endpoint, logging.KeyMTU, size,
			logging.KeyRemedy, `let ICMP "fragmentation needed" and "packet too big" pass on the underlay, or set the MTU of the network's Backend`)
	}
}

// end discards the round of s.
func (x *prober) end(s *probing) {
	for i := range s.sizes {
		delete(x.waiting, s.first+uint16(i))
	}
	s.sizes = nil
	x.rounds--
}
