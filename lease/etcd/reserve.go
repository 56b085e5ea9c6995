//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// Reserve reserves the subnets of l permanently for the node that has its public
// addresses; if l has none, it withholds them from all nodes. An existing lease
// of that node, or of any node if l has no address, becomes a reservation with its
// present value. It returns the resulting reservation.
//
// It changes nothing and fails if the subnets do not fit the network config or
// overlap those of another lease.
func (s *Store) Reserve(ctx context.Context, l lease.Lease) (*lease.Lease, error) {
	op := "reserve " + s.layout.key(l.Key())
	value, err := lease.EncodeAttrs(l.Attrs)
	if err != nil {
		return nil, err
	}
	return s.rewrite(ctx, op, func(snap *snapshot, g *grant) (*lease.Lease, error) {
		c := snap.config
		if err := s.configError(c); err != nil {
			return nil, err
		}
		if !c.parsed.HandsOut(l) {
			return nil, &Error{Endpoints: s.endpoints, Op: op, Err: fmt.Errorf("the network allocates %s", handsOut(c.parsed)), Remedy: "choose one of them"}
		}
		e, taken := snap.overlapping(l)
		switch {
		case !taken:
			free := []clientv3.Cmp{s.layout.unchangedSince(snap), clientv3.Compare(clientv3.ModRevision(s.layout.config), "=", c.revision)}
			_, err := g.commit(ctx, op, free, clientv3.OpPut(s.layout.key(l.Key()), string(value)))
			return &l, err
		case e.Key() != l.Key() || e.bad == nil && len(l.Addrs()) > 0 && !sameNode(l.Attrs, e.Attrs):
			return nil, &Error{Endpoints: s.endpoints, Op: op, Err: fmt.Errorf("%s is taken by %s", e.Key(), s.holder(&e)),
				Remedy: "choose another subnet, or name the node that has it"}
		case e.bad != nil:
			return nil, &Error{Endpoints: s.endpoints, Op: op, Err: e.bad, Remedy: "delete the key " + e.raw + " first"}
		case !e.reserved():
			kept, err := lease.EncodeAttrs(e.Attrs)
			if err != nil {
				return nil, err
			}
			unchanged := clientv3.Compare(clientv3.ModRevision(e.raw), "=", e.revision)
			_, err = g.commit(ctx, op, []clientv3.Cmp{unchanged}, clientv3.OpPut(e.raw, string(kept)))
			return &e.Lease, err
		}
		return &e.Lease, nil
	})
}

// Release ends the reservation of the subnets of l. One that names a node becomes a
// lease of one day, which a running node renews, so pods are not affected; one that
// names none is deleted. It returns the resulting lease, or nil if there is none.
//
// It changes nothing and fails if the subnets are not reserved.
func (s *Store) Release(ctx context.Context, l lease.Lease) (*lease.Lease, error) {
	op := "release " + s.layout.key(l.Key())
	return s.rewrite(ctx, op, func(snap *snapshot, g *grant) (*lease.Lease, error) {
		for _, e := range snap.entries {
			if e.Key() != l.Key() {
				continue
			}
			if !e.reserved() {
				return nil, &Error{Endpoints: s.endpoints, Op: op, Err: fmt.Errorf("it is the lease of %s, not a reservation", s.holder(&e)),
					Remedy: "a lease expires a day after its node stops"}
			}
			return s.release(ctx, op, e, g)
		}
		return nil, &Error{Endpoints: s.endpoints, Op: op, Err: errors.New("no such reservation"), Remedy: "list all with twill leases"}
	})
}

func (s *Store) release(ctx context.Context, op string, e entry, g *grant) (*lease.Lease, error) {
	unchanged := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(e.raw), "=", e.revision)}
	if !e.usable() {
		_, err := g.commit(ctx, op, unchanged, clientv3.OpDelete(e.raw))
		return nil, err
	}
	value, err := lease.EncodeAttrs(e.Attrs)
	if err != nil {
		return nil, err
	}
	leaseID, err := g.get(ctx)
	if err != nil {
		return nil, err
	}
	e.Expiration = g.expires
	_, err = g.commit(ctx, op, unchanged, clientv3.OpPut(e.raw, string(value), clientv3.WithLease(leaseID)))
	return &e.Lease, err
}

// holder describes the owner of an entry, for messages.
func (s *Store) holder(e *entry) string {
	if as := e.Addrs(); len(as) > 0 {
		return as[0].String()
	}
	return "an entry that names no node"
}

// handsOut describes the subnets that a network allocates.
func handsOut(c *lease.Config) string {
	var text string
	for _, r := range []lease.Range{c.IPv4, c.IPv6} {
		if !r.Enabled() {
			continue
		}
		if text != "" {
			text += ", each with one of the "
		}
		text += fmt.Sprintf("/%d subnets from %s to %s", r.SubnetLen, r.SubnetMin, r.SubnetMax)
	}
	return text
}
