//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// Watch sends the current config and leases, and then the changes. It sends another
// snapshot if changes may have been missed: after etcd compacted them, or was
// restored to an earlier state. An unusable or missing config is sent in Err, once
// for each version; until there has been a valid one nothing else is sent.
//
// The lease that Acquire returned last is never in Delete and never missing from a
// snapshot. An Err that wraps lease.ErrLost reports that it is gone or belongs to
// another node; it is deleted once Acquire has returned other subnets.
//
// Only this node's own lease has an Expiration in the updates, since each takes a
// request to etcd; the result of Leases includes them all. An unreadable value is
// logged once, and the lease stays unchanged.
func (s *Store) Watch(ctx context.Context, updates chan<- lease.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watcher{Store: s, updates: updates, back: s.reconnects(ctx), known: make(map[lease.Key]entry)}
	for ctx.Err() == nil {
		snap, err := s.read(ctx, always)
		if err != nil {
			break // ctx is done
		}
		ready, err := w.begin(ctx, snap)
		switch {
		case err != nil:
		case ready:
			w.follow(ctx)
		default:
			_ = s.awaitConfig(ctx, snap.revision)
		}
	}
	return ctx.Err()
}

// errReplaced reports that etcd's state is older than what it sent before, or belongs
// to another cluster: etcd was restored, or its data was deleted.
var errReplaced = errors.New("etcd was restored, or its data was deleted")

// follow sends changes until some may be missing, or ctx is done.
func (w *watcher) follow(ctx context.Context) {
	var pause backoff
	for {
		some, err := w.stream(ctx)
		w.watched.Store(false)
		if some {
			pause = backoff{}
		}
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, rpctypes.ErrCompacted), errors.Is(err, errReplaced):
			w.log.Info("changes may have been missed, reading all leases again", logging.KeyWhy, cause(err))
			return
		}
		// Otherwise etcd has no leader, the login has expired, or the connection was
		// lost in the middle of a response. The next watch begins where this one
		// ended.
		if w.outage.note(time.Now()) {
			w.log.Warn("etcd watch interrupted, leases stay in force until it resumes",
				logging.KeyError, cause(err), logging.KeyRemedy, w.remedy(err))
		}
		if pause.wait(ctx) != nil {
			return
		}
	}
}

// stream watches until the watch ends or ctx is done. some reports whether it
// received anything.
//
// Config and leases are watched separately, since a user may have permissions for
// these keys only, not for the rest of the prefix.
func (w *watcher) stream(ctx context.Context) (some bool, err error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	from := func(revision int64) []clientv3.OpOption {
		return []clientv3.OpOption{clientv3.WithRev(revision + 1), clientv3.WithCreatedNotify(), clientv3.WithProgressNotify()}
	}
	leases := w.client.Watch(ctx, w.layout.subnets, append(from(w.leasesAt), clientv3.WithPrefix())...)
	config := w.client.Watch(ctx, w.layout.config, from(w.configAt)...)
	for {
		renamed := w.own.renames()
		if err := w.forget(ctx); err != nil {
			return some, err
		}
		select {
		case resp, ok := <-leases:
			if err := w.check(ctx, resp, ok, w.leasesAt); err != nil {
				return some, err
			}
			if err := w.applyLeases(ctx, resp.Events); err != nil {
				return some, err
			}
			w.leasesAt = reached(w.leasesAt, resp)
		case resp, ok := <-config:
			if err := w.check(ctx, resp, ok, w.configAt); err != nil {
				return some, err
			}
			for _, e := range resp.Events {
				if err := w.applyConfig(ctx, e); err != nil {
					return some, err
				}
			}
			w.configAt = reached(w.configAt, resp)
		case <-w.back:
			if err := w.checkSame(ctx); err != nil {
				return some, err
			}
		case <-renamed: // forget acts on it
			continue
		case <-ctx.Done():
			return some, ctx.Err()
		}
		if !some {
			some = true
			w.watched.Store(true)
			if away, logged := w.outage.end(); logged {
				w.log.Info("etcd watch resumed", logging.KeyAway, away)
			}
		}
	}
}

// check returns why a watch that had received everything up to revision at has
// ended, or nil.
//
// The response that creates a watch carries the revision of the member that
// serves it, at that moment. That may be behind what the other watch has received
// since, or what this one received from another member, so if etcd looks older,
// that is verified with a linearizable read.
func (w *watcher) check(ctx context.Context, resp clientv3.WatchResponse, ok bool, at int64) error {
	if !ok {
		return errors.New("watch closed")
	}
	if err := resp.Err(); err != nil {
		return err
	}
	if h := resp.Header; resp.Created && (h.ClusterId != w.cluster || h.Revision < at) {
		return w.checkSame(ctx)
	}
	return nil
}

// isReplaced reports whether a linearizable read shows that etcd was replaced.
func (w *watcher) isReplaced(h *etcdserverpb.ResponseHeader) bool {
	return h.ClusterId != w.cluster || h.Revision < max(w.leasesAt, w.configAt)
}

// checkSame checks that etcd's data was not replaced. The client resumes its watches
// by itself when the connection is restored, and a watch that begins at a future
// revision just waits: it would stay silent until a restored etcd has caught up.
func (w *watcher) checkSame(ctx context.Context) error {
	var resp *clientv3.GetResponse
	err := w.retry(ctx, "check that etcd's data was not replaced", always, func(ctx context.Context) (err error) {
		resp, err = w.client.Get(ctx, w.layout.config, clientv3.WithCountOnly())
		return err
	})
	if err == nil && w.isReplaced(resp.Header) {
		return errReplaced
	}
	return err
}

// reached returns the revision up to which a watch has received everything. The
// header of a response with events does not contain it: etcd sends the events that a
// late watch missed in parts, and puts its current revision on each (syncWatchers in
// etcd 3.7.3's server/storage/mvcc/watchable_store.go).
func reached(before int64, resp clientv3.WatchResponse) int64 {
	if n := len(resp.Events); n > 0 {
		return resp.Events[n-1].Kv.ModRevision
	}
	if resp.IsProgressNotify() {
		return max(before, resp.Header.Revision)
	}
	return before
}
