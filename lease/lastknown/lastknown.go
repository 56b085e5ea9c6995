// Package lastknown lets a node start while its store of leases does not answer: with
// the configuration, the lease and the peers that it knew last, from a file that it
// keeps. Pods talk as they did; what has changed meanwhile arrives when the store is
// back.
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
	// WaitConfig returns the network configuration when there is a good one.
	// Before that it calls refused with what is wrong.
	WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error)
	// Away returns since when the store does not answer, and why; the zero time:
	// it does.
	Away() (since time.Time, why error)
}

// NodeAddresser is a Source that knows addresses to choose this node's interface
// by.
type NodeAddresser interface {
	NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error)
}

const (
	// patience is how long a node that knows leases waits for its store at the
	// start.
	patience = 3 * time.Second
	// retryAfter is how long a lease that is pending rests before it is asked for
	// again.
	retryAfter = time.Second
	// writeEvery is the least time between two writes of the file.
	writeEvery = 10 * time.Second
)

// Options are what a Store needs beside its source.
type Options struct {
	Path string // of the file
	// Waiting is called when Acquire waits for something else than before; nil:
	// nobody wants to know.
	Waiting func(why error)
	Logger  *slog.Logger
}

// Store is the leases of a Source, or what was known of them. It is safe for
// concurrent use.
type Store struct {
	source   Source
	o        Options
	patience time.Duration // what tests shorten

	mu       sync.Mutex
	known    memory // what the file says, or is to say
	acquired bool   // Acquire has returned a lease
	guessed  bool   // it was one that was known
}

var _ lease.Store = (*Store)(nil)

// Open returns a store that goes on with the file at o.Path where source does not
// answer. A file that cannot be used is as good as none.
func Open(source Source, o Options) *Store {
	s := &Store{source: source, o: o, patience: patience}
	var err error
	if s.known, err = read(o.Path); err != nil {
		o.Logger.Warn("leases known last not readable, starting without them", logging.KeyError, err)
	}
	return s
}

// Away returns since when the source does not answer, and why.
func (s *Store) Away() (since time.Time, why error) { return s.source.Away() }

// Config returns that of the source.
func (s *Store) Config(ctx context.Context) (*lease.Config, error) { return s.source.Config(ctx) }

// WaitConfig is that of the source; where that does not answer it returns the
// configuration that was known last.
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
	late := s.late()
	for {
		select {
		case a := <-answers:
			return a.config, a.err
		case err := <-faults:
			late = nil // it has answered
			refused(err)
		case <-late:
			if c := s.memory().Config; c != nil {
				s.log("network configuration", nil)
				return c, nil
			}
		}
	}
}

// late returns a channel that receives when the source has had its time to answer.
func (s *Store) late() <-chan time.Time { return time.After(s.patience) }

func (s *Store) memory() memory {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// log reports what is taken from memory.
func (s *Store) log(what string, err error) {
	since, why := s.source.Away()
	if why == nil {
		why = err
	}
	s.o.Logger.Warn("lease store does not answer, going on with what was known", logging.KeyWhat, what,
		logging.KeyKnown, s.memory().At, logging.KeyAway, time.Since(since).Round(time.Second), logging.KeyWhy, why)
}

// NodeAddrs is that of the source, if it has one; where that does not answer, what
// it said last.
func (s *Store) NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error) {
	n, ok := s.source.(NodeAddresser)
	if !ok {
		return ipv4, ipv6, nil
	}
	ipv4, ipv6, err = n.NodeAddrs(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		return s.known.NodeIPv4, s.known.NodeIPv6, err
	}
	s.known.NodeIPv4, s.known.NodeIPv6 = ipv4, ipv6
	return ipv4, ipv6, nil
}

// Acquire is that of the source. The first time it waits for a lease that is
// pending; if the source does not answer, it returns the lease that this node had,
// unless that has expired or was another address's.
func (s *Store) Acquire(ctx context.Context, a lease.Attrs, prev lease.Previous) (*lease.Lease, error) {
	s.mu.Lock()
	first := !s.acquired
	s.mu.Unlock()
	if !first {
		return s.keep(s.source.Acquire(ctx, a, prev))
	}
	late := s.late()
	for last := ""; ; {
		l, err := s.ask(ctx, late, a, prev)
		if !errors.Is(err, lease.ErrPending) {
			return s.keep(l, err)
		}
		if own := s.memory().own(a, time.Now()); own != nil && s.isAway() {
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

// ask asks the source once. A source that waits by itself is given up, as pending,
// when late receives and this node knows a lease.
func (s *Store) ask(ctx context.Context, late <-chan time.Time, a lease.Attrs, prev lease.Previous) (l *lease.Lease, err error) {
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		l, err = s.source.Acquire(asking, a, prev)
	}()
	select {
	case <-answered:
	case <-late:
		if s.memory().own(a, time.Now()) != nil && s.isAway() {
			cancel()
		}
		<-answered
		if err != nil && ctx.Err() == nil && asking.Err() != nil {
			err = fmt.Errorf("%w: %w", lease.ErrPending, err)
		}
	}
	return l, err
}

func (s *Store) isAway() bool {
	since, _ := s.source.Away()
	return !since.IsZero()
}

// Renew is that of the source.
func (s *Store) Renew(ctx context.Context, own *lease.Lease) (*lease.Lease, error) {
	return s.keep(s.source.Renew(ctx, own))
}

// keep remembers the own lease.
func (s *Store) keep(l *lease.Lease, err error) (*lease.Lease, error) {
	if err == nil {
		s.mu.Lock()
		s.acquired, s.known.Own = true, l
		s.mu.Unlock()
	}
	return l, err
}

// errBack calls for Renew after a start without the source.
var errBack = fmt.Errorf("%w: the store is back, and has to confirm it", lease.ErrLost)

// Watch sends what the source does. Where that does not answer at the start it sends
// what was known first. It keeps the file up to date.
func (s *Store) Watch(ctx context.Context, updates chan<- lease.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, ended := make(chan lease.Update), make(chan error, 1)
	go func() { ended <- s.source.Watch(ctx, in) }()
	w := writer{Store: s}
	defer w.end()
	late := s.late()
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
			first := u.Err == nil && late != nil
			err = send(u)
			if first {
				late = nil
				if s.wasGuess() && err == nil {
					err = send(lease.Update{Err: errBack})
				}
			}
			w.apply(u)
		case <-late:
			if m := s.memory(); m.Config != nil && s.isAway() {
				err = send(lease.Update{Config: m.Config, Snapshot: true, Put: m.Leases})
			} else {
				late = time.After(retryAfter)
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

// wasGuess says, once, whether the own lease is what was known.
func (s *Store) wasGuess() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.guessed
	s.guessed = false
	return was
}
