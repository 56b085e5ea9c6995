//go:build !nokube

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// nodes follows the Node objects of the cluster into the store's table, using
// the client's reflector. Only the relevant part of a Node is kept, and there is
// no queue that could fill up.
type nodes struct{ *Store }

// backoff is the backoff between attempts to list and watch.
var backoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 5 * time.Second}

// run lists and watches until ctx is done. It retries forever.
func (n *nodes) run(ctx context.Context) {
	changes, end := n.subscribe()
	defer end()
	for ctx.Err() == nil {
		alone := n.alone()
		following, cancel := context.WithCancel(ctx)
		n.follow(following, alone)
		for ctx.Err() == nil && n.alone() == alone {
			select {
			case <-changes:
			case <-ctx.Done():
			}
		}
		cancel()
	}
}

// alone returns the name of this node if it does not need the others, because
// something else carries packets between nodes. It returns "" if it needs all
// nodes.
func (n *nodes) alone() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.config != nil && n.config.Backend.Type == "alloc" {
		return n.name
	}
	return ""
}

// follow starts a reflector, which ends some time after ctx is done: it does
// not check ctx while it pauses between two attempts.
func (n *nodes) follow(ctx context.Context, alone string) {
	pace := backoff
	r := cache.NewReflectorWithOptions(n.listWatch(alone), &corev1.Node{}, &receiver{n, ctx}, cache.ReflectorOptions{Name: "nodes", Backoff: &pace})
	go r.RunWithContext(ctx)
}

// receiver acts as the reflector's cache. It ignores everything once its reflector
// has been stopped, since another one may have started.
type receiver struct {
	*nodes
	ctx context.Context
}

// listWatch requests all nodes, or a single one. Both of its functions record whether
// the API answers.
func (n *nodes) listWatch(alone string) *cache.ListWatch {
	selector := ""
	if alone != "" {
		selector = fields.OneTermEqualSelector(metav1.ObjectNameField, alone).String()
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.FieldSelector = selector
			l, err := n.list(ctx, o)
			// The reflector lists nodes only if it cannot watch from the start. If
			// listing is forbidden, a watch that succeeds later ends the fault.
			op := opList
			if err != nil {
				op = opWatch
			}
			_ = n.outcome(ctx, op, err)
			return l, err // unchanged, since the reflector inspects it
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch, o.FieldSelector = true, selector
			c, err := n.access.get()
			if err != nil {
				return nil, n.outcome(ctx, opWatch, err)
			}
			w, err := c.Get().Resource("nodes").VersionedParams(&o, metav1.ParameterCodec).
				Timeout(time.Duration(*o.TimeoutSeconds) * time.Second).Watch(ctx)
			if noted := n.outcome(ctx, opWatch, err); noted == nil {
				return w, nil
			}
			return nil, err // unchanged, since the reflector inspects it
		},
	}
}

const opList, opWatch = "list nodes", "watch nodes"

// list returns a page of nodes, trimmed.
func (s *Store) list(ctx context.Context, o metav1.ListOptions) (*corev1.NodeList, error) {
	c, err := s.access.get()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	var l corev1.NodeList
	if err := c.Get().Resource("nodes").VersionedParams(&o, metav1.ParameterCodec).Do(ctx).Into(&l); err != nil {
		return nil, err
	}
	for i := range l.Items {
		small, err := s.trim(&l.Items[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", opList, err)
		}
		l.Items[i] = *small.(*corev1.Node)
	}
	return &l, nil
}

// listTimeout is how long a page of nodes may take.
const listTimeout = 30 * time.Second

// Transformer implements cache.TransformingStore.
func (r *receiver) Transformer() cache.TransformFunc { return r.trim }

// Add implements cache.ReflectorStore.
func (r *receiver) Add(o any) error { return r.Update(o) }

// Update implements cache.ReflectorStore.
func (r *receiver) Update(o any) error {
	node, ok := o.(*corev1.Node)
	if !ok {
		return fmt.Errorf("watch nodes: %T is not a Node", o)
	}
	e := r.entry(node)
	r.change(func() {
		r.table.Put(e)
		if e.Name == r.name {
			r.own.seen, r.own.gone = e, false
		}
	})
	return nil
}

// Delete implements cache.ReflectorStore.
func (r *receiver) Delete(o any) error {
	node, ok := o.(*corev1.Node)
	if !ok {
		return fmt.Errorf("watch nodes: %T is not a Node", o)
	}
	r.change(func() {
		r.table.Remove(node.Name)
		if node.Name == r.name && r.own.seen != nil {
			last := *r.own.seen
			last.Version = node.ResourceVersion
			r.own.seen, r.own.gone = &last, true
		}
	})
	return nil
}

// Replace implements cache.ReflectorStore.
func (r *receiver) Replace(all []any, _ string) error {
	entries := make([]*layout.Node, 0, len(all))
	for _, o := range all {
		if node, ok := o.(*corev1.Node); ok {
			entries = append(entries, r.entry(node))
		}
	}
	r.change(func() {
		r.own.gone = r.own.seen != nil
		for _, e := range entries {
			if e.Name == r.name {
				r.own.seen, r.own.gone = e, false
			}
		}
		r.table.Replace(entries)
		r.synced = true
	})
	return nil
}

// change calls f with the mutex held, and then notifies the subscribers.
func (r *receiver) change(f func()) {
	r.mu.Lock()
	if r.ctx.Err() == nil {
		f()
	}
	r.mu.Unlock()
	r.notify()
}

// Resync implements cache.ReflectorStore.
func (r *receiver) Resync() error { return nil }

// Leases returns the leases of all nodes in the order of their subnets, as the API
// has them now. An invalid node is left out; Watch logs the reason.
func (s *Store) Leases(ctx context.Context) ([]lease.Lease, error) {
	t := layout.NewTable(s.keys, slog.New(slog.DiscardHandler))
	o := metav1.ListOptions{Limit: pageSize}
	for {
		l, err := s.list(ctx, o)
		if err != nil {
			return nil, s.fail(opList, err)
		}
		for i := range l.Items {
			t.Put(s.entry(&l.Items[i]))
		}
		if o.Continue = l.Continue; o.Continue == "" {
			return t.Leases(), nil
		}
	}
}

// pageSize is how many nodes are read at once.
const pageSize = 500
