//go:build !nokube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/client-go/rest"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Acquire annotates this node's object with a, if it differs, and returns the
// lease of the subnets that the cluster has assigned to it. prev is ignored. The
// lease contains a unchanged, even if a user's annotation makes the other nodes
// see another address.
func (s *Store) Acquire(ctx context.Context, a lease.Attrs, _ lease.Previous) (*lease.Lease, error) {
	return s.hold(ctx, a, "")
}

// Renew is Acquire for a node whose subnets are unchanged. It changes nothing
// and returns an error that wraps lease.ErrLost if the node's object is gone or
// has other subnets now.
func (s *Store) Renew(ctx context.Context, own *lease.Lease) (*lease.Lease, error) {
	return s.hold(ctx, own.Attrs, own.Key())
}

// hold writes a to the node's object. was is the key of the lease that the node is
// expected to have; empty means any.
func (s *Store) hold(ctx context.Context, a lease.Attrs, was lease.Key) (*lease.Lease, error) {
	c, err := s.Config(ctx)
	if err != nil {
		return nil, &Error{Op: "read the network configuration", Err: err, Kind: lease.ErrPending}
	}
	e, err := s.node(ctx)
	if err != nil {
		if was != "" && errors.Is(err, errNoNode) {
			return nil, errLost("%w", err)
		}
		return nil, err
	}
	l, err := assigned(c, e)
	if err != nil {
		fault := s.unassigned(c, e, err)
		if was != "" {
			return nil, errLost("%w", fault)
		}
		return nil, fault
	}
	if was != "" && l.Key() != was {
		return nil, errMoved(e, l)
	}
	l.Attrs = a
	if err := s.annotate(ctx, e, a); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.own.lease = &l
	s.table.SetOwn(e.Name, l)
	s.mu.Unlock()
	s.notify()
	return &l, nil
}

// errNoNode reports that this node's object does not exist in the cluster.
var errNoNode = errors.New("no such node")

// absent replaces the error for a Node that does not exist.
func (s *Store) absent(err error, op string) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	return &Error{Op: op, Err: errNoNode, Kind: lease.ErrPending,
		Remedy: "the kubelet creates it when it registers; if it registers under another name, set NODE_NAME to that name"}
}

// unassigned returns the error for a Node with unsuitable podCIDRs.
func (s *Store) unassigned(c *lease.Config, e *layout.Node, err error) error {
	remedy := "set the Network in " + s.path + " to the cluster's --cluster-cidr, or delete the node so that it gets another podCIDR"
	if len(e.PodCIDRs) == 0 {
		remedy = "run kube-controller-manager with --allocate-node-cidrs=true and --cluster-cidr=" + networks(c)
	}
	return &Error{Op: "acquire lease of node " + e.Name, Err: err, Kind: lease.ErrPending, Remedy: remedy}
}

func networks(c *lease.Config) string {
	text := ""
	for _, n := range c.Networks() {
		if text != "" {
			text += ","
		}
		text += n.String()
	}
	return text
}

// annotate sets the annotations of e, which is this node, to those of a.
func (s *Store) annotate(ctx context.Context, e *layout.Node, a lease.Attrs) error {
	want, err := s.keys.Wanted(e, a, s.started)
	op := "annotate node " + e.Name
	if err != nil {
		return &Error{Op: op, Err: err, Kind: lease.ErrPending, Remedy: "correct or remove the annotation"}
	}
	c := s.keys.Changes(e, want)
	if len(c) == 0 {
		s.unneeded(op)
		return nil
	}
	return s.patch(ctx, op, e.Name, map[string]any{"metadata": map[string]any{"annotations": c}})
}

// patch sends a strategic merge patch of this node's status, which may include
// annotations, and records the result.
func (s *Store) patch(ctx context.Context, op, name string, p any) error {
	body, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var n corev1.Node
	err = s.try(ctx, op, func(ctx context.Context, c rest.Interface) error {
		return c.Patch(types.StrategicMergePatchType).Resource("nodes").Name(name).SubResource("status").Body(body).Do(ctx).Into(&n)
	})
	if err != nil {
		return s.absent(err, op)
	}
	s.log.Debug("node patched", logging.KeyNode, name, logging.KeyOperation, op)
	s.see(s.entry(&n))
	return nil
}

// see records the state of this node's object from a response of the API, unless Watch
// has received a later one since: another program may have changed the object after the
// response was sent.
func (s *Store) see(e *layout.Node) {
	s.mu.Lock()
	if !s.own.isOlder(e) {
		s.own.seen, s.own.gone = e, false
	}
	s.mu.Unlock()
	s.notify()
}

// isOlder reports whether e is older than what has been seen.
func (o *own) isOlder(e *layout.Node) bool {
	if o.seen == nil {
		return false
	}
	order, err := resourceversion.CompareResourceVersion(e.Version, o.seen.Version)
	return err == nil && order < 0
}

// NodeAddrs returns the addresses with which users annotated this node to select
// its interface; they are invalid if there are none. It queries the API the
// first time, and afterwards returns what Watch has seen.
func (s *Store) NodeAddrs(ctx context.Context) (ipv4, ipv6 netip.Addr, err error) {
	s.mu.Lock()
	e := s.own.seen
	s.mu.Unlock()
	if e == nil {
		if e, err = s.node(ctx); err != nil {
			return ipv4, ipv6, err
		}
	}
	if ipv4, ipv6, err = s.keys.NodeAddrs(e); err != nil {
		err = &Error{Op: "choose the interface of node " + e.Name, Err: err, Kind: lease.ErrPending, Remedy: "correct or remove the annotation"}
	}
	return ipv4, ipv6, err
}
