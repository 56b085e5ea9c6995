//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// errConflict reports that the conditions of a transaction no longer hold.
var errConflict = errors.New("conflicting changes by other nodes")

// longestConflict bounds the pause after a conflict with another node, which is
// resolved sooner than an outage of etcd.
const longestConflict = time.Second

// contend calls change until there is no conflict with another node.
func (s *Store) contend(ctx context.Context, op string, change func(*grant) (*lease.Lease, error)) (*lease.Lease, error) {
	g := grant{store: s}
	defer g.drop(ctx)
	pause := backoff{longest: longestConflict}
	for {
		l, err := change(&g)
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, errConflict):
			return nil, err
		}
		if err := pause.wait(ctx); err != nil {
			return nil, s.fail(op, errConflict, err)
		}
	}
}

// rewrite is contend with a snapshot for each call of change.
func (s *Store) rewrite(ctx context.Context, op string, change func(*snapshot, *grant) (*lease.Lease, error)) (*lease.Lease, error) {
	return s.contend(ctx, op, func(g *grant) (*lease.Lease, error) {
		snap, err := s.read(ctx, retryable)
		if err != nil {
			return nil, err
		}
		return change(snap, g)
	})
}

// grant is an etcd lease for a key that is not written yet. Attempts reuse it, so
// that a node that retries often does not leave many leases behind.
type grant struct {
	store   *Store
	id      clientv3.LeaseID
	expires time.Time // by the monotonic clock: a step of the wall clock does not move it
	spent   bool      // a key may be bound to it
}

// get returns the etcd lease, and requests one if there is none.
func (g *grant) get(ctx context.Context) (clientv3.LeaseID, error) {
	if g.id != clientv3.NoLease && time.Until(g.expires) > g.store.ttl/2 {
		return g.id, nil
	}
	g.drop(ctx)
	// Measured from before the request, so that the lease never expires later here
	// than in etcd.
	asked := time.Now()
	var resp *clientv3.LeaseGrantResponse
	err := g.store.retry(ctx, fmt.Sprintf("grant an etcd lease of %s", g.store.ttl), retryable, func(ctx context.Context) (err error) {
		asked = time.Now()
		resp, err = g.store.client.Grant(ctx, int64(g.store.ttl/time.Second))
		return err
	})
	if err != nil {
		return clientv3.NoLease, err
	}
	g.id, g.expires, g.spent = resp.ID, asked.Add(time.Duration(resp.TTL)*time.Second), false
	return g.id, nil
}

// drop revokes the etcd lease unless a key may be bound to it. If that fails, it
// expires by itself.
func (g *grant) drop(ctx context.Context) {
	if g.id == clientv3.NoLease || g.spent {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_, _ = g.store.client.Revoke(ctx, g.id)
	g.id = clientv3.NoLease
}

// commit sends a transaction that writes an entry: it returns its revision, or
// errConflict if one of the conditions does not hold. The reason may be an earlier
// attempt that succeeded but whose answer was lost.
func (g *grant) commit(ctx context.Context, op string, conditions []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	var resp *clientv3.TxnResponse
	attempts, was := 0, g.spent
	g.spent = true // even if no answer arrives
	err := g.store.retry(ctx, op, retryable, func(ctx context.Context) (err error) {
		attempts++
		resp, err = g.store.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound): // the outage of etcd outlasted the lease
		g.id = clientv3.NoLease
		return 0, errConflict
	case err != nil:
		return 0, err
	case !resp.Succeeded:
		if attempts == 1 {
			g.spent = was
		}
		return 0, errConflict
	}
	return resp.Header.Revision, nil
}
