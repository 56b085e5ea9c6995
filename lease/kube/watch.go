//go:build !nokube

package kube

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/filewatch"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Watch sends the network configuration and all leases as soon as both are known,
// and then the changes. Errors are sent in Err: that the configuration is invalid,
// once for each version; that this node is refused; and, as lease.ErrLost, that
// this node's object is gone, has another podCIDR, or no longer has the expected
// annotations. The own lease stays in force until Acquire returns another.
//
// Once Ready has been called, Watch keeps the node's condition NetworkUnavailable False
// as long as it runs.
func (s *Store) Watch(ctx context.Context, updates chan<- lease.Update) error {
	f := s.configWatch()
	defer f.Close() // after all goroutines that wait for it
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	changes, end := s.subscribe()
	defer end()
	file := follow(ctx, f, &running)
	n := &nodes{s}
	running.Go(func() { n.run(ctx) })
	running.Go(func() { s.keepCondition(ctx) })
	w := &watcher{Store: s, updates: updates, nodes: n}
	w.readFile()
	for {
		if err := w.step(ctx); err != nil {
			return err
		}
		select {
		case <-changes:
		case <-file:
			w.readFile()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow returns a channel that receives a value when the file may have
// changed.
func follow(ctx context.Context, f *filewatch.Notifier, running *sync.WaitGroup) <-chan struct{} {
	f.Arm()
	changes := make(chan struct{}, 1)
	running.Go(func() {
		for f.Wait(ctx) == nil {
			f.Arm()
			select {
			case changes <- struct{}{}:
			default:
			}
		}
	})
	return changes
}

// watcher is the state of one Watch.
type watcher struct {
	*Store
	updates chan<- lease.Update
	nodes   *nodes

	read    *lease.Config // from the file; nil if the file is invalid because of bad
	bad     error
	config  *lease.Config // last sent; nil if none
	refused string        // the error of the configuration sent since then
	begun   bool          // the snapshot was sent
	denied  string        // why the API refuses this node, as last sent; empty if it does not
	lost    string        // the last sent fault of the own node; empty if there was none
	addrs   string        // annotations that select the interface, as last seen
}

// readFile reads the network configuration from the file.
func (w *watcher) readFile() {
	w.read, w.bad = w.readConfig()
	if w.bad == nil {
		w.mu.Lock()
		w.Store.config = w.read
		w.mu.Unlock()
		w.notify() // the configuration determines which nodes matter
	}
}

// step sends what has changed.
func (w *watcher) step(ctx context.Context) error {
	u, errs := w.collect()
	if u != nil {
		if err := w.send(ctx, *u); err != nil {
			return err
		}
	}
	for _, e := range errs {
		if err := w.send(ctx, lease.Update{Err: e}); err != nil {
			return err
		}
	}
	return nil
}

// collect returns the update that brings the receiver up to date, or nil if it already
// is, and the errors to send after it.
func (w *watcher) collect() (*lease.Update, []error) {
	var u lease.Update
	var errs []error
	some := false
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.bad == nil && (w.config == nil || w.refused != "" || !w.read.Equal(w.config)):
		w.config, w.refused = w.read, ""
		u.Config, some = w.read, true
	case w.bad != nil && w.bad.Error() != w.refused:
		w.refused = w.bad.Error()
		errs = append(errs, w.bad)
	}
	// An operation may be refused while changes still arrive, so all updates carry it.
	u.Err = w.reach.refusal()
	if denied := textOf(u.Err); denied != w.denied {
		w.denied, some = denied, true
	}
	if w.config == nil || !w.begun && !w.nodes.synced {
		if some && u.Err != nil {
			errs = append(errs, u.Err)
		}
		return nil, errs // only errors before there is a snapshot
	}
	changed := w.table.Take()
	switch {
	case !w.begun:
		w.begun = true
		u.Snapshot, u.Config, u.Put, some = true, w.config, w.table.Leases(), true
	case changed.Put != nil || changed.Delete != nil:
		u.Put, u.Delete, some = changed.Put, changed.Delete, true
	}
	if addrs := w.own.addrs(w.keys); addrs != w.addrs {
		w.addrs, some = addrs, true // makes the daemon call NodeAddrs again
	}
	if lost := w.ownFault(); lost != nil && lost.Error() != w.lost {
		w.lost = lost.Error()
		errs = append(errs, lost)
	} else if lost == nil {
		w.lost = ""
	}
	if !some {
		return nil, errs
	}
	return &u, errs
}

// textOf returns the text of err, or "" if err is nil.
func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (w *watcher) send(ctx context.Context, u lease.Update) error {
	select {
	case w.updates <- u:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ownFault returns, as lease.ErrLost, how this node's object differs from what
// Acquire left. The mutex must be held.
func (s *Store) ownFault() error {
	if s.own.lease == nil || s.config == nil {
		return nil
	}
	if s.own.gone {
		return errLost("Kubernetes: node %s was deleted", s.name)
	}
	e := s.own.seen
	l, err := assigned(s.config, e)
	switch {
	case err != nil:
		return errLost("Kubernetes: node %s: %w", e.Name, err)
	case l.Key() != s.own.lease.Key():
		return errMoved(e, l)
	}
	want, err := s.keys.Wanted(e, s.own.lease.Attrs, s.started)
	if err != nil {
		return errLost("Kubernetes: node %s: %w", e.Name, err)
	}
	if c := s.keys.Changes(e, want); len(c) > 0 {
		return errLost("Kubernetes: node %s: annotations changed by another program: %s", e.Name, strings.Join(slices.Sorted(maps.Keys(c)), ", "))
	}
	return nil
}

// addrs returns the annotations that select the interface, as text.
func (o *own) addrs(k *layout.Keys) string {
	if o.seen == nil {
		return ""
	}
	return k.NodeAddrsText(o.seen)
}
