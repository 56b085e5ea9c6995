//go:build !noetcd

package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// Acquire returns the lease that has the public address of a, if it fits the
// network. Otherwise it creates one, with the subnets in prev if they are free, or
// else with random free ones. It writes a to the lease. A reservation remains a
// reservation, and has no Expiration.
//
// It retries while other nodes take the subnets that it was about to take. It
// fails if the network config is missing or unusable, and with an error that
// wraps lease.ErrNoLease if all subnets are taken.
func (s *Store) Acquire(ctx context.Context, a lease.Attrs, prev lease.Previous) (*lease.Lease, error) {
	const op = "acquire lease"
	for _, ip := range a.Addrs() {
		if err := lease.CheckPublic(ip); err != nil {
			return nil, fmt.Errorf("%s: %w: %w; choose another interface with --iface, or set the address with --public-ip", op, lease.ErrNoLease, err)
		}
	}
	if len(a.Addrs()) == 0 {
		return nil, fmt.Errorf("%s: %w: this node has no public address; choose an interface that has one with --iface", op, lease.ErrNoLease)
	}
	value, err := lease.EncodeAttrs(a)
	if err != nil {
		return nil, err
	}
	among := firstFree
	return s.rewrite(ctx, op, func(snap *snapshot, g *grant) (*lease.Lease, error) {
		if err := s.configError(snap.config); err != nil {
			return nil, err
		}
		t := taking{s, g, snap, a, string(value)}
		l, err := t.take(ctx, prev, among)
		among = min(2*among, 1<<16) // for the next attempt, if other nodes have taken these
		return l, err
	})
}

// taking is one attempt by Acquire.
type taking struct {
	*Store
	grant *grant
	snap  *snapshot
	attrs lease.Attrs
	value string // attrs, encoded
}

// take returns errConflict if the snapshot is out of date.
func (t *taking) take(ctx context.Context, prev lease.Previous, among int) (*lease.Lease, error) {
	c := t.snap.config.parsed
	var misfits []entry
	for _, e := range t.owned(prev) {
		if c.HandsOut(e.Lease) {
			return t.adopt(ctx, e)
		}
		if e.reserved() {
			t.log.Warn("reservation for this node does not fit the network config, ignoring it", logging.KeySubnet, e.Subnets(),
				logging.KeyRemedy, "release it, or change the network config")
			continue
		}
		misfits = append(misfits, e)
	}
	l, err := choose(c, append(t.snap.taken(), t.unroutable(ctx, prev)...), prev, among)
	if err != nil {
		return nil, t.full(err)
	}
	return t.create(ctx, l, misfits)
}

// owned returns the entries of this node, the one with the previous subnets first.
// That entry may have a different address of the host, chosen earlier. A node that
// had a different address for a while may have left several entries.
func (t *taking) owned(prev lease.Previous) []entry {
	var own []entry
	for _, e := range t.snap.entries {
		previous := e.Subnet == prev.Subnet && e.IPv6Subnet == prev.IPv6Subnet
		if e.bad != nil || !sameNode(e.Attrs, t.attrs) && !(previous && !e.reserved() && isHere(e.Attrs, prev.Addrs)) {
			continue
		}
		if previous {
			own = slices.Insert(own, 0, e)
		} else {
			own = append(own, e)
		}
	}
	return own
}

// unroutable returns the addresses that must stay reachable, each as a prefix: a
// route to a subnet that contains one would cut it off. They are the addresses of this
// host and its gateways, of etcd, and of all nodes. A host address within the previous
// subnets is left out, since it belongs to the bridge or the tunnel.
func (t *taking) unroutable(ctx context.Context, prev lease.Previous) []netip.Prefix {
	etcd, err := EndpointAddrs(ctx, t.endpoints)
	if err != nil {
		t.log.Warn("cannot resolve etcd endpoints, a new subnet may contain their addresses", logging.KeyError, err)
	}
	all := slices.Concat(t.attrs.Addrs(), prev.Gateways, etcd)
	for _, a := range prev.Addrs {
		if !prev.Subnet.Contains(a) && !prev.IPv6Subnet.Contains(a) {
			all = append(all, a)
		}
	}
	for _, e := range t.snap.entries {
		all = append(all, e.Addrs()...)
	}
	prefixes := make([]netip.Prefix, len(all))
	for i, a := range all {
		prefixes[i] = netip.PrefixFrom(a, a.BitLen())
	}
	return prefixes
}

// isHere reports whether all addresses of a are among those of the host.
func isHere(a lease.Attrs, host []netip.Addr) bool {
	as := a.Addrs()
	return len(as) > 0 && !slices.ContainsFunc(as, func(ip netip.Addr) bool { return !slices.Contains(host, ip) })
}

// adopt takes over a lease that belongs to this node.
func (t *taking) adopt(ctx context.Context, e entry) (*lease.Lease, error) {
	return t.put(ctx, "acquire "+e.raw, e, t.attrs, t.value, t.grant)
}

// put writes a to an entry of this node, on a new etcd lease unless it is a
// reservation. It returns errConflict if the entry has changed.
func (s *Store) put(ctx context.Context, op string, e entry, a lease.Attrs, value string, g *grant) (*lease.Lease, error) {
	l := lease.Lease{Attrs: a, Subnet: e.Subnet, IPv6Subnet: e.IPv6Subnet}
	write := clientv3.OpPut(e.raw, value)
	leaseID := clientv3.LeaseID(clientv3.NoLease)
	if !e.reserved() {
		var err error
		if leaseID, err = g.get(ctx); err != nil {
			return nil, err
		}
		l.Expiration = g.expires
		write = clientv3.OpPut(e.raw, value, clientv3.WithLease(leaseID))
	}
	revision := e.revision
	if !e.reserved() || !e.Attrs.Equal(a) || e.bad != nil {
		s.own.claim(a)
		var err error
		unchanged := clientv3.Compare(clientv3.ModRevision(e.raw), "=", e.revision)
		if revision, err = g.commit(ctx, op, []clientv3.Cmp{unchanged}, write); err != nil {
			return nil, err
		}
	}
	s.own.set(l, e.raw, revision, leaseID)
	return &l, nil
}

// create creates a lease, and removes this node's leases that do not fit.
func (t *taking) create(ctx context.Context, l lease.Lease, misfits []entry) (*lease.Lease, error) {
	leaseID, err := t.grant.get(ctx)
	if err != nil {
		return nil, err
	}
	key := t.layout.key(l.Key())
	conditions := append(t.stillFree(l), clientv3.Compare(clientv3.ModRevision(t.layout.config), "=", t.snap.config.revision))
	var ops []clientv3.Op
	for _, e := range misfits {
		t.log.Info("replacing lease of this node that does not fit the network config", logging.KeySubnet, e.Subnets())
		conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(e.raw), "=", e.revision))
		ops = append(ops, clientv3.OpDelete(e.raw))
	}
	ops = append(ops, clientv3.OpPut(key, t.value, clientv3.WithLease(leaseID)))
	t.own.claim(t.attrs)
	revision, err := t.grant.commit(ctx, "acquire "+key, conditions, ops...)
	if err != nil {
		return nil, err
	}
	l.Attrs, l.Expiration = t.attrs, t.grant.expires
	t.own.set(l, key, revision, leaseID)
	return &l, nil
}

// stillFree returns the conditions that hold if no part of l was taken since the
// snapshot. In a network of one family, two subnets of the same length have the same
// key or do not overlap. With two families a key may combine any subnets of each, so
// no key may have changed.
func (t *taking) stillFree(l lease.Lease) []clientv3.Cmp {
	c := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(t.layout.key(l.Key())), "=", 0)}
	if l.Subnet.IsValid() && l.IPv6Subnet.IsValid() {
		c = append(c, t.layout.unchangedSince(t.snap))
	}
	return c
}

// unchangedSince returns the condition that no lease was written since snap.
func (l layout) unchangedSince(snap *snapshot) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(l.subnets), "<", snap.revision+1).WithPrefix()
}

// full adds the location and the remedy to the error of choose.
func (s *Store) full(err error) error {
	return &Error{Endpoints: s.endpoints, Op: "acquire lease under " + s.layout.subnets, Err: err,
		Remedy: "release unused subnets, or widen the network"}
}
