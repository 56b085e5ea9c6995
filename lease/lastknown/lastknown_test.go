package lastknown

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// source is a store of which the test says when it answers.
type source struct {
	mu      sync.Mutex
	away    time.Time
	blocks  bool // Acquire waits by itself, as that of lease/etcd
	config  *lease.Config
	own     lease.Lease
	updates chan lease.Update
	renewed int
}

func (s *source) Config(context.Context) (*lease.Config, error) { return s.config, nil }

func (s *source) WaitConfig(ctx context.Context, _ func(error)) (*lease.Config, error) {
	if since, _ := s.Away(); since.IsZero() {
		return s.config, nil
	}
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s *source) Acquire(ctx context.Context, a lease.Attrs, _ lease.Previous) (*lease.Lease, error) {
	if since, _ := s.Away(); !since.IsZero() {
		if s.blocks {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w: away", lease.ErrPending)
	}
	l := s.own
	l.Attrs = a
	return &l, nil
}

func (s *source) Renew(context.Context, *lease.Lease) (*lease.Lease, error) {
	s.renewed++
	return &s.own, nil
}

func (s *source) Watch(ctx context.Context, updates chan<- lease.Update) error {
	for {
		select {
		case u := <-s.updates:
			updates <- u
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *source) Away() (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away.IsZero() {
		return s.away, nil
	}
	return s.away, errors.New("no answer")
}

func (s *source) Watched() bool { return true }

func (s *source) setAway(since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = since
}

func leaseOf(subnet, ip string) lease.Lease {
	return lease.Lease{Subnet: netip.MustParsePrefix(subnet), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr(ip)}}
}

func newSource(t *testing.T) *source {
	t.Helper()
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}`))
	testkit.Must(t, err)
	return &source{config: c, own: leaseOf("10.5.1.0/24", "192.0.2.11"), updates: make(chan lease.Update)}
}

// remember runs a store until its file has the leases of two nodes.
func remember(t *testing.T, src *source, path string, expiration time.Time) {
	t.Helper()
	src.own.Expiration = expiration
	s := Open(src, Options{Path: path, Logger: new(testkit.Log).Logger()})
	own, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{})
	testkit.Must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	updates, ended := make(chan lease.Update), make(chan error)
	go func() { ended <- s.Watch(ctx, updates) }()
	go func() {
		src.updates <- lease.Update{Config: src.config, Snapshot: true, Put: []lease.Lease{*own, leaseOf("10.5.2.0/24", "192.0.2.12")}}
	}()
	<-updates
	testkit.Eventually(t, "the leases are written down", func() bool { _, err := os.Stat(path); return err == nil })
	cancel()
	<-ended
}

// TestStartsWithWhatWasKnown is a node that starts while its store is away, and what
// it does when that is back.
func TestStartsWithWhatWasKnown(t *testing.T) {
	for name, blocks := range map[string]bool{"a store that waits by itself": true, "a store that does not": false} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases")
			synctest.Test(t, func(t *testing.T) {
				src := newSource(t)
				remember(t, src, path, time.Time{})
				src.blocks = blocks
				src.setAway(time.Now())

				s := Open(src, Options{Path: path, Logger: new(testkit.Log).Logger()})
				c, err := s.WaitConfig(t.Context(), func(error) {})
				if err != nil || !c.Equal(src.config) {
					t.Fatalf("got config %+v, %v", c, err)
				}
				own, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{})
				if err != nil || !own.Equal(src.own) {
					t.Fatalf("got lease %+v, %v", own, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				updates := make(chan lease.Update)
				go func() { _ = s.Watch(ctx, updates) }()
				u := <-updates
				if !u.Snapshot || u.Config == nil || len(u.Put) != 2 {
					t.Fatalf("first it sent %+v", u)
				}
				src.setAway(time.Time{})
				go func() { src.updates <- lease.Update{Config: src.config, Snapshot: true, Put: []lease.Lease{src.own}} }()
				if u = <-updates; !u.Snapshot || len(u.Put) != 1 {
					t.Fatalf("when the store is back it sent %+v", u)
				}
				if u = <-updates; !errors.Is(u.Err, lease.ErrLost) {
					t.Fatalf("it did not ask for the lease to be confirmed, it sent %+v", u)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

// silent is a source on a network that drops all packets: no request fails in this time.
type silent struct{ *source }

func (s silent) WaitConfig(ctx context.Context, _ func(error)) (*lease.Config, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s silent) Acquire(ctx context.Context, _ lease.Attrs, _ lease.Previous) (*lease.Lease, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (s silent) NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error) {
	<-ctx.Done()
	return ipv4, ipv6, ctx.Err()
}

// A node waits for its store once at the start, not once for each request.
func TestKnownLeasesServeSoon(t *testing.T) {
	for name, tt := range map[string]struct {
		away   bool // requests fail at once
		config bool // the configuration does not come from the store, as in Kubernetes
		within time.Duration
	}{
		"closed port":                              {away: true, within: 2 * time.Second},
		"dropped packets":                          {within: 4 * time.Second},
		"closed port, configuration from a file":   {away: true, config: true, within: 2 * time.Second},
		"dropped packets, configuration from file": {config: true, within: 4 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases")
			synctest.Test(t, func(t *testing.T) {
				src := newSource(t)
				remember(t, src, path, time.Time{})
				if tt.away {
					src.setAway(time.Now())
				}
				began := time.Now()
				s := Open(silent{src}, Options{Path: path, Logger: new(testkit.Log).Logger()})
				if !tt.config {
					_, err := s.WaitConfig(t.Context(), func(error) {})
					testkit.Must(t, err)
				}
				_, _, _ = s.NodeAddrs(t.Context())
				own, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{})
				if err != nil || !own.Equal(src.own) {
					t.Fatalf("got lease %+v, %v", own, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				updates := make(chan lease.Update)
				go func() { _ = s.Watch(ctx, updates) }()
				if u := <-updates; !u.Snapshot || len(u.Put) != 2 {
					t.Fatalf("it sent %+v", u)
				}
				if took := time.Since(began); took > tt.within {
					t.Errorf("after %s, want %s", took, tt.within)
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

// back is a source that returns between two requests and has no lease for the node.
type back struct {
	silent
	asked int
}

func (s *back) Acquire(context.Context, lease.Attrs, lease.Previous) (*lease.Lease, error) {
	if s.asked++; s.asked > 1 {
		return &s.own, nil
	}
	return nil, fmt.Errorf("%w: no subnet is free", lease.ErrPending)
}

func TestAnswerIsPreferredToTheKnownLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases")
	synctest.Test(t, func(t *testing.T) {
		src := newSource(t)
		remember(t, src, path, time.Time{})
		s := Open(&back{silent: silent{src}}, Options{Path: path, Logger: new(testkit.Log).Logger()})
		_, err := s.WaitConfig(t.Context(), func(error) {})
		testkit.Must(t, err)
		src.own = leaseOf("10.5.9.0/24", "192.0.2.11")
		own, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{})
		if err != nil || !own.Equal(src.own) {
			t.Errorf("got %+v, %v", own, err)
		}
	})
}

// TestDoesNotTakeWhatMayBeAnothers waits for the store instead.
func TestDoesNotTakeWhatMayBeAnothers(t *testing.T) {
	for name, change := range map[string]func(path string, src *source, expiration *time.Time){
		"an expired lease":      func(_ string, _ *source, e *time.Time) { *e = time.Now().Add(time.Minute) },
		"another address":       func(_ string, src *source, _ *time.Time) { src.own.PublicIP = netip.MustParseAddr("192.0.2.77") },
		"a file that is broken": func(path string, _ *source, _ *time.Time) { _ = os.WriteFile(path, []byte(`{"Own":`), 0o600) },
		"no file":               func(path string, _ *source, _ *time.Time) { _ = os.Remove(path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "leases")
			synctest.Test(t, func(t *testing.T) {
				src := newSource(t)
				var expiration time.Time
				if name == "an expired lease" {
					change(path, src, &expiration)
				}
				remember(t, src, path, expiration)
				if name != "an expired lease" {
					change(path, src, &expiration)
				}
				src.setAway(time.Now())
				testkit.Advance(2 * time.Minute)
				var waits error
				s := Open(src, Options{Path: path, Waiting: func(why error) { waits = why }, Logger: new(testkit.Log).Logger()})
				got := make(chan *lease.Lease, 1)
				go func() {
					l, err := s.Acquire(t.Context(), src.own.Attrs, lease.Previous{})
					testkit.Must(t, err)
					got <- l
				}()
				testkit.Advance(time.Minute)
				if len(got) > 0 || waits == nil {
					t.Fatalf("it did not wait: %v", waits)
				}
				src.setAway(time.Time{})
				if l := <-got; !l.Equal(src.own) {
					t.Errorf("got %+v", l)
				}
			})
		})
	}
}
