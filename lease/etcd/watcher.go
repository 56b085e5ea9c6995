//go:build !noetcd

package etcd

import (
	"context"
	"maps"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

// watcher is the state of one Watch. Only its goroutine uses it.
type watcher struct {
	*Store
	updates chan<- lease.Update
	back    <-chan struct{} // see reconnects

	cluster            uint64 // 0 before the first snapshot
	leasesAt, configAt int64  // revisions up to which all changes were sent

	config  *lease.Config // last sent; nil if none
	refused string        // the error sent since then

	known map[lease.Key]entry // the leases that the receiver has
	// missing is the own lease if its loss has been reported and it is still in
	// known.
	missing lease.Key
}

// begin sends a snapshot. It returns false if it has to wait for a network
// config.
func (w *watcher) begin(ctx context.Context, snap *snapshot) (ready bool, err error) {
	if w.cluster != 0 && w.isReplaced(snap.header) {
		w.own.rewind()
	}
	w.cluster, w.leasesAt, w.configAt = snap.header.ClusterId, snap.revision, snap.revision
	if c := snap.config; c.revision == 0 || c.parsed == nil && w.config == nil {
		// An etcd without a config may have been emptied by mistake, which must not
		// cut off connected pods.
		return false, w.refuse(ctx, w.configError(c))
	}
	u := lease.Update{Snapshot: true}
	if c := snap.config.parsed; c != nil {
		if w.config == nil || w.refused != "" || !c.Equal(w.config) {
			u.Config = c
		}
		w.config, w.refused = c, ""
	}
	lost := w.reset(ctx, snap)
	for _, k := range slices.Sorted(maps.Keys(w.known)) {
		u.Put = append(u.Put, w.known[k].Lease)
	}
	if err := w.send(ctx, u); err != nil {
		return false, err
	}
	if lost != nil {
		if err := w.send(ctx, lease.Update{Err: lost}); err != nil {
			return false, err
		}
	}
	if snap.config.parsed == nil {
		return true, w.refuse(ctx, w.configError(snap.config))
	}
	return true, nil
}

// reset replaces known with the snapshot. It returns an error if the own lease is
// lost and the loss was not reported yet.
func (w *watcher) reset(ctx context.Context, snap *snapshot) (lost error) {
	before := w.known
	w.known = make(map[lease.Key]entry, len(snap.entries))
	own := w.own.get()
	for _, e := range snap.entries {
		k := e.Key()
		switch was, ok := before[k]; {
		case e.usable():
			w.known[k] = w.withExpiration(ctx, own, e)
		case e.bad != nil && ok:
			w.known[k] = was
		}
	}
	if own.key == "" || own.revision > snap.revision {
		return nil
	}
	now, ok := w.known[own.key]
	switch {
	case ok && own.mine(&now):
		w.missing = ""
	case ok:
		lost = w.loses(own, &now)
	default:
		lost = w.loses(own, nil)
		w.known[own.key] = entry{Lease: own.lease, raw: own.raw}
	}
	return lost
}

// loses records that the own lease is gone, or was replaced by e. It returns the
// error to report, or nil if the loss was already reported.
func (w *watcher) loses(own held, e *entry) error {
	if w.missing == own.key {
		return nil
	}
	w.missing = own.key
	return w.lost(own.key, e)
}

// forget deletes a lost own lease once this node has another.
func (w *watcher) forget(ctx context.Context) error {
	own := w.own.get()
	if w.missing == "" || w.missing == own.key {
		return nil
	}
	k := w.missing
	w.missing = ""
	if e, ok := w.known[k]; !ok || e.revision > 0 {
		return nil // it was sent already, or belongs to another node
	}
	delete(w.known, k)
	return w.send(ctx, lease.Update{Delete: []lease.Key{k}})
}

// applyLeases sends the changes of events in one update. If several events are for
// the same key, the last counts.
func (w *watcher) applyLeases(ctx context.Context, events []*clientv3.Event) error {
	last := make(map[string]int, len(events))
	for i, ev := range events {
		last[string(ev.Kv.Key)] = i
	}
	var (
		u    lease.Update
		lost error
		own  = w.own.get()
	)
	for i, ev := range events {
		if last[string(ev.Kv.Key)] != i {
			continue
		}
		e, ok := w.parseEvent(ev)
		k := e.Key()
		was, known := w.known[k]
		isOwn := k == own.key && ev.Kv.ModRevision > own.revision // and was not removed by this node itself
		var present *entry
		if ev.Type == mvccpb.PUT {
			present = &e
		}
		switch {
		case !ok || e.bad != nil && ev.Type == mvccpb.PUT: // logged
		case ev.Type == mvccpb.PUT && e.usable():
			if isOwn && !own.mine(&e) {
				lost = w.loses(own, present)
			} else if k == w.missing {
				w.missing = ""
			}
			e = w.withExpiration(ctx, own, e)
			w.known[k] = e
			u.Put = append(u.Put, e.Lease)
		case !known || was.raw != e.raw: // another spelling of the key exists
		case k == own.key && own.mine(&was):
			if isOwn {
				lost = w.loses(own, present)
				w.known[k] = entry{Lease: own.lease, raw: own.raw}
			}
		default:
			delete(w.known, k)
			u.Delete = append(u.Delete, k)
		}
	}
	if u.Put != nil || u.Delete != nil {
		if err := w.send(ctx, u); err != nil {
			return err
		}
	}
	if lost != nil {
		return w.send(ctx, lease.Update{Err: lost})
	}
	return nil
}

// parseEvent is like parse for an event, where a deleted key has no value.
func (w *watcher) parseEvent(ev *clientv3.Event) (entry, bool) {
	if ev.Type == mvccpb.PUT {
		return w.parse(ev.Kv)
	}
	subnet, ipv6Subnet, err := w.layout.subnetsOf(ev.Kv.Key)
	return entry{Lease: lease.Lease{Subnet: subnet, IPv6Subnet: ipv6Subnet}, raw: string(ev.Kv.Key)}, err == nil
}

// withExpiration adds the expiration to e if it is the own lease.
func (w *watcher) withExpiration(ctx context.Context, own held, e entry) entry {
	switch {
	case e.Key() != own.key || e.reserved() || !own.mine(&e):
	case e.leaseID == own.leaseID:
		e.Expiration = own.lease.Expiration
	default: // not written by this node, or by a renewal in progress
		until, err := w.expiration(ctx, e.leaseID)
		if err != nil {
			until = time.Now() // renewing too early is better than never
		}
		e.Expiration = until
	}
	return e
}

// applyConfig sends the change of an event of the config key.
func (w *watcher) applyConfig(ctx context.Context, ev *clientv3.Event) error {
	v := parseConfig(nil, 0)
	if ev.Type == mvccpb.PUT {
		v = parseConfig(ev.Kv.Value, ev.Kv.ModRevision)
	}
	if v.parsed == nil {
		return w.refuse(ctx, w.configError(v))
	}
	wasRefused := w.refused != ""
	w.refused = ""
	if !wasRefused && v.parsed.Equal(w.config) {
		return nil
	}
	w.config = v.parsed
	return w.send(ctx, lease.Update{Config: v.parsed})
}

// refuse sends an error of the config, unless it was the last one sent.
func (w *watcher) refuse(ctx context.Context, err error) error {
	if err.Error() == w.refused {
		return nil
	}
	w.refused = err.Error()
	return w.send(ctx, lease.Update{Err: err})
}

func (w *watcher) send(ctx context.Context, u lease.Update) error {
	select {
	case w.updates <- u:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
