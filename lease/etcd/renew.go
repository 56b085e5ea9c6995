//go:build !noetcd

package etcd

import (
	"context"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// Renew extends own by a day and writes own.Attrs to it, which may have changed,
// so a node whose address changes keeps its subnets. A reservation remains one
// and is returned without Expiration.
//
// It changes nothing and returns an error that wraps lease.ErrLost if the lease
// has expired, was deleted, or now belongs to another node.
func (s *Store) Renew(ctx context.Context, own *lease.Lease) (*lease.Lease, error) {
	op := "renew " + s.layout.key(own.Key())
	value, err := lease.EncodeAttrs(own.Attrs)
	if err != nil {
		return nil, err
	}
	return s.contend(ctx, op, func(g *grant) (*lease.Lease, error) {
		e, err := s.entryOf(ctx, op, own)
		if err != nil {
			return nil, err
		}
		return s.put(ctx, op, e, own.Attrs, string(value), g)
	})
}

// entryOf returns the entry of own if it still belongs to this node.
func (s *Store) entryOf(ctx context.Context, op string, own *lease.Lease) (entry, error) {
	key := s.layout.key(own.Key())
	h := s.own.get()
	h.claims = append(h.claims, own.Attrs)
	if h.key == own.Key() {
		key = h.raw // whose IPv6 spelling may differ
	}
	var resp *clientv3.GetResponse
	err := s.retry(ctx, op, retryable, func(ctx context.Context) (err error) {
		resp, err = s.client.Get(ctx, key)
		return err
	})
	if err != nil {
		return entry{}, err
	}
	if len(resp.Kvs) == 0 {
		return entry{}, s.lost(own.Key(), nil)
	}
	e, ok := s.parse(resp.Kvs[0])
	if !ok || !h.mine(&e) {
		return entry{}, s.lost(own.Key(), &e)
	}
	return e, nil
}

// lost returns the error for a lease that no longer belongs to this node. e is the
// entry in its place, or nil if there is none.
func (s *Store) lost(key lease.Key, e *entry) error {
	how := "it has expired or was deleted"
	if e != nil {
		how = "its entry was overwritten"
		if as := e.Addrs(); len(as) > 0 {
			how = fmt.Sprintf("it now belongs to %s", as[0])
		}
	}
	return &Error{Endpoints: s.endpoints, Op: "lease " + string(key), Err: fmt.Errorf("%w: %s", lease.ErrLost, how),
		Remedy: "acquire another; a lease expires if its node cannot reach etcd for a day"}
}
