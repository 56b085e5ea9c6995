// Package etcd is a lease.Store over etcd v3, in flannel's layout, so that nodes
// of both kinds share one network:
//
//	<prefix>/config               the network config, JSON
//	<prefix>/subnets/10.5.52.0-24 the lease of one node: its lease.Attrs
//
// A lease is bound to an etcd lease of a day, which its node renews; a key without
// one is a reservation and stays. What two nodes might do at once is decided by
// transactions, so no subnet ever has two owners.
//
// All requests wait for an etcd that does not answer, for as long as their
// context lasts, and say so in the log. What waiting does not cure, such as a
// wrong password, is returned at once as an *Error.
package etcd

import (
	"context"
	"log/slog"
	"path"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// DefaultPrefix is flannel's.
const DefaultPrefix = "/coreos.com/network"

// defaultTTL is how long a lease outlives its last renewal, as in flannel.
const defaultTTL = 24 * time.Hour

// Store is the leases of one network in etcd. It is safe for concurrent use.
type Store struct {
	client    *clientv3.Client
	endpoints []string
	layout    layout
	log       *slog.Logger
	outage    outage // limits the log while etcd does not answer
	faults    faults // unreadable entries that have been logged
	own       own    // the lease of this node

	// What tests shorten.
	ttl time.Duration // of a lease; whole seconds
}

var _ lease.Store = (*Store)(nil)

// Open checks o and returns a store. It sends nothing, but for a user that is to
// be logged in: that waits for etcd until ctx is done. ctx means nothing to the
// store afterwards.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	c, err := o.clientConfig()
	if err != nil {
		return nil, err
	}
	s := &Store{
		endpoints: o.Endpoints,
		layout:    newLayout(o.Prefix),
		log:       o.Logger.With(logging.KeyEndpoints, o.Endpoints),
		ttl:       defaultTTL,
	}
	for _, why := range o.exposures() {
		s.log.Warn("connection to etcd is not protected", logging.KeyWhy, why,
			logging.KeyRemedy, "use https endpoints")
	}
	err = s.retry(ctx, "log in", retryable, func(context.Context) (err error) {
		s.client, err = clientv3.New(c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close ends the connections. Requests that are under way fail. The lease of
// this node stays in etcd until it expires.
func (s *Store) Close() error { return s.client.Close() }

// layout names the keys of one network.
type layout struct {
	config  string
	subnets string // with a slash at the end
}

func newLayout(prefix string) layout {
	return layout{path.Join(prefix, "config"), path.Join(prefix, "subnets") + "/"}
}

func (l layout) key(k lease.Key) string { return l.subnets + string(k) }
