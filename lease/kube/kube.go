// Package kube implements lease.Store on the Node objects of a Kubernetes
// cluster, in stock flannel's layout (package layout), so that nodes of both kinds
// share one network.
//
// Each node that takes part has a lease. It does not expire; it is removed with
// the Node object. An error in a node's object is logged, and the node keeps the
// lease that it had.
//
// If the node's object or its podCIDR does not exist yet, or the API does not
// answer or refuses this node, calls return an *Error that wraps
// lease.ErrPending: the same call may succeed later.
package kube

import (
	"errors"
	"fmt"
	"strings"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Error reports which operation on Kubernetes failed, and what to do about it.
type Error = layout.Error

// Event reports something about this node to the cluster's administrator.
type Event struct {
	Reason  string // what kind of event this is, in CamelCase
	Message string // the API keeps 1,024 bytes of it
	Normal  bool   // type Normal, not Warning
}

// errLost returns an error about the own lease that calls for Renew.
func errLost(format string, args ...any) error {
	return fmt.Errorf("%w: %w", lease.ErrLost, fmt.Errorf(format, args...))
}

// errMoved returns the error for the own node e if the subnets of l are assigned to it
// instead of those of its lease.
func errMoved(e *layout.Node, l lease.Lease) error {
	return errLost("Kubernetes: node %s now has the podCIDRs %v", e.Name, l.Subnets())
}

// inside returns an error unless the subnets assigned to a node are in the
// network.
func inside(c *lease.Config, l lease.Lease) error {
	errs := lease.Check(c, []lease.Lease{l})
	var outside *lease.OutsideError
	if len(errs) > 0 && errors.As(errs[0], &outside) && outside.Network.IsValid() {
		return fmt.Errorf("podCIDR %s is outside the network %s", outside.Subnet, outside.Network)
	}
	return nil
}

// assigned returns the subnets of a node in the address families that c enables.
func assigned(c *lease.Config, e *layout.Node) (l lease.Lease, err error) {
	subnet, ipv6Subnet, err := e.Subnets()
	if err != nil {
		return l, err
	}
	if c.IPv4.Enabled() {
		l.Subnet = subnet
	}
	if c.IPv6.Enabled() {
		l.IPv6Subnet = ipv6Subnet
	}
	switch {
	case len(e.PodCIDRs) == 0:
		return l, layout.ErrNoPodCIDR
	case len(l.Subnets()) == 0:
		return l, fmt.Errorf("spec.podCIDRs has no subnet of an address family that the network enables: %s", strings.Join(e.PodCIDRs, ", "))
	}
	return l, inside(c, l)
}
