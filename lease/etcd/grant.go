package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// errConflict says that a transaction found what it was made for changed.
var errConflict = errors.New("changed by another")

// grant is an etcd lease that is meant for a key. It is used from one attempt to
// the next, so that a node that tries often leaves no trail of them.
type grant struct {
	store   *Store
	id      clientv3.LeaseID
	expires time.Time // by the monotonic clock: a step of the wall clock does not move it
	spent   bool      // a key may hang on it
}

// get returns the etcd lease, and takes one where there is none.
func (g *grant) get(ctx context.Context) (clientv3.LeaseID, error) {
	if g.id != clientv3.NoLease && time.Until(g.expires) > g.store.ttl/2 {
		return g.id, nil
	}
	g.drop(ctx)
	// From before the request, so that we never think it longer than etcd does.
	asked := time.Now()
	var resp *clientv3.LeaseGrantResponse
	err := g.store.ride(ctx, fmt.Sprintf("take an etcd lease of %s", g.store.ttl), passes, func(ctx context.Context) (err error) {
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

// drop gives the etcd lease back unless a key may hang on it. If that fails it
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
// errConflict if one of the conditions does not hold. That may be so because an
// attempt before, whose answer was lost, has succeeded.
func (g *grant) commit(ctx context.Context, op string, conditions []clientv3.Cmp, ops ...clientv3.Op) (int64, error) {
	var resp *clientv3.TxnResponse
	attempts, was := 0, g.spent
	g.spent = true // also if no answer comes
	err := g.store.ride(ctx, op, passes, func(ctx context.Context) (err error) {
		attempts++
		resp, err = g.store.client.Txn(ctx).If(conditions...).Then(ops...).Commit()
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound): // etcd was away for longer than it lasts
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
