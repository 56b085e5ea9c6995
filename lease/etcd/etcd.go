//go:build !noetcd

// Package etcd implements lease.Store on etcd v3, in flannel's layout, so that
// nodes of both kinds share one network:
//
//	<prefix>/config               the network config, JSON
//	<prefix>/subnets/10.5.52.0-24 the lease of one node: its lease.Attrs
//
// A lease is bound to an etcd lease of one day, which its node renews; a key without
// an etcd lease is a reservation and stays. Concurrent changes by two nodes are
// resolved by transactions, so no subnet ever has two owners.
//
// While etcd does not answer, all requests wait until their context is done,
// and log that. Failures that waiting cannot resolve, such as a wrong password,
// are returned at once as an *Error.
package etcd

import (
	"context"
	"log/slog"
	"path"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// defaultTTL is how long a lease outlives its last renewal, as in flannel.
const defaultTTL = 24 * time.Hour

// Store holds the leases of one network in etcd. It is safe for concurrent use.
type Store struct {
	client    *clientv3.Client
	endpoints []string
	layout    layout
	log       *slog.Logger
	outage    outage // limits the log while etcd does not answer
	faults    faults // unreadable entries already logged
	own       own    // the lease of this node
	watched   atomic.Bool

	// Tests shorten this.
	ttl time.Duration // of a lease; whole seconds
}

// Built reports whether this build includes a client of etcd.
const Built = true

var _ lease.Store = (*Store)(nil)

// Open checks o and returns a store. It sends nothing unless a user has to log
// in, which waits for etcd until ctx is done. The store does not use ctx after
// Open returns.
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
		s.log.Warn("connection to etcd is not encrypted", logging.KeyWhy, why,
			logging.KeyRemedy, "use https URLs in --etcd-endpoints")
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

// Close ends the connections. Requests in progress fail. The lease of this node
// stays in etcd until it expires.
func (s *Store) Close() error { return s.client.Close() }

// layout holds the names of the keys of one network.
type layout struct {
	config  string
	subnets string // with a slash at the end
}

func newLayout(prefix string) layout {
	return layout{path.Join(prefix, "config"), path.Join(prefix, "subnets") + "/"}
}

func (l layout) key(k lease.Key) string { return l.subnets + string(k) }
