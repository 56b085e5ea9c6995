// Package lastknown lets a node start while its store of leases does not answer, with
// the last known configuration, lease and peers from a file that the package maintains.
// Pods keep their connectivity; changes made meanwhile arrive when the store is back.
package lastknown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// Source is a store that may not answer. lease/etcd and lease/kube implement it.
type Source interface {
	lease.Store
	// WaitConfig returns the network configuration as soon as it is valid. Until
	// then it calls refused with the error.
	WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error)
	// Away returns when the store stopped answering, and why. The time is zero if
	// it answers.
	Away() (since time.Time, why error)
	// Watched reports whether changes arrive as they happen.
	Watched() bool
}

// NodeAddresser is a Source that holds addresses by which to choose this node's
// interface.
type NodeAddresser interface {
	NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error)
}

const (
	// patience is how long a node with known leases waits for an answer of its store at
	// startup: for all requests together, since its last answer.
	patience = 3 * time.Second
	// brief is the same for a store that is known not to answer: requests have failed.
	brief = time.Second
	// lookEvery is the interval at which a pending request is reconsidered.
	lookEvery = 100 * time.Millisecond
	// retryAfter is the pause before a pending lease is requested again.
	retryAfter = time.Second
	// writeEvery is the minimum time between two writes of the file.
	writeEvery = 10 * time.Second
)

// Options are the parameters of a Store besides its source.
type Options struct {
	Path string // of the file
	// Waiting is called when the reason why Acquire waits has changed. It may be
	// nil.
	Waiting func(why error)
	Logger  *slog.Logger
}

// Store provides the leases of a Source, or the last known ones. It is safe for
// concurrent use.
type Store struct {
	source Source
	o      Options

	mu       sync.Mutex
	asked    time.Time // the first request since the last answer; zero: none
	given    bool      // since then something known was returned in place of an answer
	known    memory    // the content of the file, current or still to be written
	acquired bool      // Acquire has returned a lease
	guessed  bool      // that lease was the last known one
}

var _ lease.Store = (*Store)(nil)

// Open returns a store that falls back to the file at o.Path if source does not
// answer. An unusable file counts as none.
func Open(source Source, o Options) *Store {
	s := &Store{source: source, o: o}
	var err error
	if s.known, err = read(o.Path); err != nil {
		o.Logger.Warn("cannot read last known leases, starting without them", logging.KeyError, err)
	}
	return s
}

// Away returns when the source stopped answering, and why.
func (s *Store) Away() (since time.Time, why error) { return s.source.Away() }

// Watched reports whether changes in the source arrive as they happen.
func (s *Store) Watched() bool { return s.source.Watched() }

// Config returns the configuration of the source.
func (s *Store) Config(ctx context.Context) (*lease.Config, error) { return s.source.Config(ctx) }

// WaitConfig returns the configuration of the source or, if the source does not
// answer, the last known one.
func (s *Store) WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error) {
	type answer struct {
		config *lease.Config
		err    error
	}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, faults := make(chan answer, 1), make(chan error)
	go func() {
		c, err := s.source.WaitConfig(asking, func(err error) {
			select {
			case faults <- err:
			case <-asking.Done():
			}
		})
		answers <- answer{c, err}
	}()
	looks := s.ask()
	defer looks.Stop()
	for {
		select {
		case a := <-answers:
			if a.err == nil {
				s.answered()
			}
			return a.config, a.err
		case err := <-faults:
			s.answered()
			looks.Stop()
			refused(err)
		case <-looks.C:
			if c := s.memory().Config; c != nil && s.late() {
				s.log("network configuration", nil)
				s.mu.Lock()
				s.given = true
				s.mu.Unlock()
				return c, nil
			}
		}
	}
}

// ask notes the time of a request. It returns a ticker for reconsidering the request.
func (s *Store) ask() *time.Ticker {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.IsZero() {
		s.asked = time.Now()
	}
	return time.NewTicker(lookEvery)
}

// answered notes that the source has answered.
func (s *Store) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked, s.given = time.Time{}, false
}

// late reports whether the source has had its time to answer since ask.
func (s *Store) late() bool {
	away := s.isAway()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked.IsZero() {
		return false
	}
	waited := time.Since(s.asked)
	return waited >= patience || away && waited >= brief
}

// isSilent reports whether the source has had its time to answer and is away: a request may
// also take long because the source waits for something else.
func (s *Store) isSilent() bool {
	late, away := s.late(), s.isAway()
	s.mu.Lock()
	defer s.mu.Unlock()
	return late && (away || s.given)
}

func (s *Store) memory() memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// log logs that what (for example, the leases) is taken from memory.
func (s *Store) log(what string, err error) {
	since, why := s.source.Away()
	if why == nil {
		why = err
	}
	if since.IsZero() { // no request has failed yet
		s.mu.Lock()
		since = s.asked
		s.mu.Unlock()
	}
	s.o.Logger.Warn("lease store does not answer, starting with the last known leases", logging.KeyWhat, what,
		logging.KeyKnown, s.memory().At, logging.KeyAway, time.Since(since).Round(time.Second), logging.KeyWhy, why)
}

// NodeAddrs returns the addresses of the source, if it is a NodeAddresser or, if
// it does not answer, the last known ones.
func (s *Store) NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error) {
	n, ok := s.source.(NodeAddresser)
	if !ok {
		return ipv4, ipv6, nil
	}
	given, err := s.call(ctx, func(ctx context.Context) (err error) {
		ipv4, ipv6, err = n.NodeAddrs(ctx)
		return err
	}, func() bool { return s.memory().Own != nil && s.late() })
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.given = s.given || given
		return s.known.NodeIPv4, s.known.NodeIPv6, err
	}
	s.known.NodeIPv4, s.known.NodeIPv6 = ipv4, ipv6
	return ipv4, ipv6, nil
}

// Acquire calls the source. The first time it waits for a pending lease; if the
// source does not answer, it returns the lease that this node had, unless that lease
// has expired or belonged to another address.
func (s *Store) Acquire(ctx context.Context, a lease.Attrs, prev lease.Previous) (*lease.Lease, error) {
	s.mu.Lock()
	first := !s.acquired
	s.mu.Unlock()
	if !first {
		return s.keep(s.source.Acquire(ctx, a, prev))
	}
	for last := ""; ; {
		var l *lease.Lease
		_, err := s.call(ctx, func(ctx context.Context) (err error) {
			l, err = s.source.Acquire(ctx, a, prev)
			return err
		}, func() bool { return s.memory().own(a, time.Now()) != nil && s.isSilent() })
		if !errors.Is(err, lease.ErrPending) {
			return s.keep(l, err)
		}
		if own := s.memory().own(a, time.Now()); own != nil && (s.isAway() || s.isSilent()) {
			s.log("leases", err)
			s.mu.Lock()
			s.acquired, s.guessed = true, true
			s.mu.Unlock()
			return own, nil
		}
		if err.Error() != last {
			last = err.Error()
			s.o.Logger.Warn("no lease yet, waiting", logging.KeyError, err)
			if s.o.Waiting != nil {
				s.o.Waiting(err)
			}
		}
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// call calls the source once by f. As soon as abandon returns true, it abandons the call,
// which is then pending.
func (s *Store) call(ctx context.Context, f func(context.Context) error, abandon func() bool) (abandoned bool, err error) {
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	looks := s.ask()
	defer looks.Stop()
	go func() { ended <- f(calling) }()
	for {
		select {
		case err := <-ended:
			switch {
			case err == nil:
				s.answered()
				return false, nil
			case abandoned && ctx.Err() == nil:
				return true, fmt.Errorf("%w: %w", lease.ErrPending, err)
			case ctx.Err() == nil && !s.isAway(): // an answer, too
				s.answered()
			}
			return false, err
		case <-looks.C:
			if abandon() {
				abandoned = true
				cancel()
				looks.Stop()
			}
		}
	}
}

func (s *Store) isAway() bool {
	since, _ := s.source.Away()
	return !since.IsZero()
}

// Renew calls the source.
func (s *Store) Renew(ctx context.Context, own *lease.Lease) (*lease.Lease, error) {
	return s.keep(s.source.Renew(ctx, own))
}

// keep records the own lease.
func (s *Store) keep(l *lease.Lease, err error) (*lease.Lease, error) {
	if err == nil {
		s.mu.Lock()
		s.acquired, s.known.Own = true, l
		s.asked, s.given = time.Time{}, false
		s.mu.Unlock()
	}
	return l, err
}

// errBack calls for Renew after a start without the source.
var errBack = fmt.Errorf("%w: it was the last known one, which the store has yet to confirm", lease.ErrLost)

// Watch sends the updates of the source. If the source does not answer at startup,
// Watch first sends the last known state. It keeps the file up to date.
func (s *Store) Watch(ctx context.Context, updates chan<- lease.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, ended := make(chan lease.Update), make(chan error, 1)
	go func() { ended <- s.source.Watch(ctx, in) }()
	w := writer{Store: s}
	defer w.end()
	looks := s.ask()
	defer looks.Stop()
	send := func(u lease.Update) error {
		select {
		case updates <- u:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for {
		var err error
		select {
		case err := <-ended:
			return err
		case u := <-in:
			err = send(u)
			if u.Snapshot {
				s.answered()
				looks.Stop()
				if s.wasGuess() && err == nil {
					err = send(lease.Update{Err: errBack})
				}
			}
			w.apply(u)
		case <-looks.C:
			if m := s.memory(); m.Config != nil && s.isSilent() {
				looks.Stop()
				err = send(lease.Update{Config: m.Config, Snapshot: true, Put: m.Leases})
			}
		case <-w.due():
			w.write()
		}
		if err != nil {
			cancel()
			<-ended
			return err
		}
	}
}

// wasGuess reports, once, whether the own lease was taken from memory.
func (s *Store) wasGuess() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.guessed
	s.guessed = false
	return was
}
