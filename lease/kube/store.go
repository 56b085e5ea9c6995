//go:build !nokube

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Built reports whether this build includes Kubernetes support.
const Built = true

// Store holds the leases of one network in Kubernetes. It is safe for
// concurrent use.
type Store struct {
	access  access
	keys    *layout.Keys
	path    string // of the network configuration
	log     *slog.Logger
	started time.Time // with the precision of a Node's conditions

	mu    sync.Mutex
	reach reach
	name  string // of this node; empty if not known yet
	own   own
	ready bool // Ready was called
	table *layout.Table
	// synced means that the table has been complete once.
	synced bool
	// config is the last valid network configuration, nil before there was one.
	config *lease.Config
	// watchers are notified of each change of the fields above.
	watchers map[chan struct{}]bool
}

// own is this node: the lease it acquired and its state when last seen.
type own struct {
	lease *lease.Lease // nil if none was acquired yet
	seen  *layout.Node // nil if never seen
	gone  bool         // the object was deleted since
}

var _ lease.Store = (*Store)(nil)

// silence turns off the client's own log, which repeats the errors of its calls. All
// stores share that log.
var silence = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })

// Open returns a store. It sends no request to the API and reads no file yet.
func Open(o Options) (*Store, error) {
	k, err := layout.NewKeys(o.Prefix)
	if err != nil {
		return nil, err
	}
	if o.ConfigFile == "" {
		o.ConfigFile = layout.DefaultConfigFile
	}
	silence()
	s := &Store{
		access: access{o: o}, keys: k, path: o.ConfigFile, log: o.Logger, name: o.Node,
		started:  time.Now().UTC().Truncate(time.Second),
		watchers: map[chan struct{}]bool{},
	}
	s.table = layout.NewTable(s.keys, o.Logger)
	return s, nil
}

// Close does nothing: everything that a store runs ends with Watch.
func (s *Store) Close() error { return nil }

// nodeName returns the name of this node.
func (s *Store) nodeName(ctx context.Context) (string, error) {
	s.mu.Lock()
	name := s.name
	s.mu.Unlock()
	if name != "" {
		return name, nil
	}
	o := &s.access.o
	op := fmt.Sprintf("read pod %s/%s for the name of this node", o.PodNamespace, o.PodName)
	var pod corev1.Pod
	err := s.try(ctx, op, func(ctx context.Context, c rest.Interface) error {
		return c.Get().Namespace(o.PodNamespace).Resource("pods").Name(o.PodName).Do(ctx).Into(&pod)
	})
	switch {
	case err != nil:
		return "", err
	case pod.Spec.NodeName == "":
		return "", &Error{Op: op, Err: errors.New("spec.nodeName is empty"), Kind: lease.ErrPending, Remedy: "set NODE_NAME to the name of this node"}
	}
	s.mu.Lock()
	s.name = pod.Spec.NodeName
	s.mu.Unlock()
	return pod.Spec.NodeName, nil
}

// node requests this node's object from the API.
func (s *Store) node(ctx context.Context) (*layout.Node, error) {
	name, err := s.nodeName(ctx)
	if err != nil {
		return nil, err
	}
	var n corev1.Node
	op := "read node " + name
	err = s.try(ctx, op, func(ctx context.Context, c rest.Interface) error {
		return c.Get().Resource("nodes").Name(name).Do(ctx).Into(&n)
	})
	if err != nil {
		return nil, s.absent(err, op)
	}
	e := s.entry(&n)
	s.see(e)
	return e, nil
}

// entry returns the relevant part of n.
func (s *Store) entry(n *corev1.Node) *layout.Node {
	var o layout.Object
	o.Metadata.Name, o.Metadata.ResourceVersion, o.Metadata.Annotations = n.Name, n.ResourceVersion, n.Annotations
	o.Spec.PodCIDR, o.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for _, c := range n.Status.Conditions {
		o.Status.Conditions = append(o.Status.Conditions, layout.Condition{
			Type: string(c.Type), Status: string(c.Status), Reason: c.Reason, LastHeartbeatTime: c.LastHeartbeatTime.Time,
		})
	}
	return s.keys.Node(&o)
}

// trim is like entry, but for the caches of the client, which must hold Nodes.
func (s *Store) trim(o any) (any, error) {
	n, ok := o.(*corev1.Node)
	if !ok {
		return o, nil
	}
	small := &corev1.Node{}
	small.Name, small.ResourceVersion = n.Name, n.ResourceVersion
	small.Annotations = s.keys.Trim(n.Annotations)
	small.Spec.PodCIDR, small.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeNetworkUnavailable {
			small.Status.Conditions = append(small.Status.Conditions, c)
		}
	}
	return small, nil
}

// subscribe returns a channel that receives after each change of the store's
// state.
func (s *Store) subscribe() (changes chan struct{}, end func()) {
	c := make(chan struct{}, 1)
	s.mu.Lock()
	s.watchers[c] = true
	s.mu.Unlock()
	return c, func() {
		s.mu.Lock()
		delete(s.watchers, c)
		s.mu.Unlock()
	}
}

// notify wakes the subscribers.
func (s *Store) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
