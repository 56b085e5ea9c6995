package daemon

import (
	"context"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// alloc is flannel's backend that carries nothing: the node takes a lease and
// writes subnet.env, and something else, such as the routes of a cloud, brings
// packets from node to node.
type alloc struct{ mtu int }

// SetLeases implements dataPlane: the peers are not needed.
func (alloc) SetLeases([]lease.Lease) (again bool) { return false }

// Run implements dataPlane.
func (alloc) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close implements dataPlane.
func (alloc) Close() error { return nil }

// MTU implements dataPlane: nothing is put around the packets.
func (a alloc) MTU() int { return a.mtu }

// Failed implements dataPlane: there are no backends.
func (alloc) Failed() backend.Failed { return nil }

// Status implements dataPlane: there is no device.
func (alloc) Status() status.Dataplane { return status.Dataplane{} }

// Counters implements dataPlane.
func (alloc) Counters() []*metrics.Shard { return nil }
