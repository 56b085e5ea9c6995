//go:build !noetcd

package etcd

import (
	"context"
	"slices"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// asking is the number of concurrent requests for the remaining time of leases; each
// request to etcd covers only one lease.
const asking = 32

// Leases returns all leases in the order of their subnets, each with its
// Expiration; reservations have none. A reservation that names no node has no
// public address. Unreadable entries are logged and left out.
func (s *Store) Leases(ctx context.Context) ([]lease.Lease, error) {
	snap, err := s.read(ctx, retryable)
	if err != nil {
		return nil, err
	}
	entries := slices.DeleteFunc(snap.entries, func(e entry) bool { return e.bad != nil })
	if err := s.expirations(ctx, entries); err != nil {
		return nil, err
	}
	leases := make([]lease.Lease, len(entries))
	for i, e := range entries {
		leases[i] = e.Lease
	}
	return lease.NewSet(leases).Leases(), nil
}

// expirations completes entries, or returns the first error.
func (s *Store) expirations(ctx context.Context, entries []entry) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		work    = make(chan *entry)
		workers sync.WaitGroup
		failed  sync.Once
		first   error
	)
	for range min(asking, len(entries)) {
		workers.Go(func() {
			for e := range work {
				until, err := s.expiration(ctx, e.leaseID)
				if err != nil {
					failed.Do(func() { first = err })
					cancel() // the remaining requests fail at once
				}
				e.Expiration = until
			}
		})
	}
	for i := range entries {
		if !entries[i].reserved() {
			work <- &entries[i]
		}
	}
	close(work)
	workers.Wait()
	return first
}

// expiration queries when a lease expires.
func (s *Store) expiration(ctx context.Context, id clientv3.LeaseID) (time.Time, error) {
	var until time.Time
	err := s.retry(ctx, "read the remaining time of a lease", retryable, func(ctx context.Context) error {
		asked := time.Now()
		resp, err := s.client.TimeToLive(ctx, id)
		if err != nil {
			return err
		}
		until = asked.Add(max(0, time.Duration(resp.TTL)*time.Second)) // -1: it has expired
		return nil
	})
	return until, err
}
