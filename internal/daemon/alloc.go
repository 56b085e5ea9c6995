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

// SetLeases implements carrier: nobody here needs to know the peers.
func (alloc) SetLeases([]lease.Lease) (again bool) { return false }

// Run implements carrier.
func (alloc) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close implements carrier.
func (alloc) Close() error { return nil }

// MTU implements carrier: nothing is put around the packets.
func (a alloc) MTU() int { return a.mtu }

// Choice implements carrier: there are no ways.
func (alloc) Choice() backend.Choice { return backend.Choice{} }

// Status implements carrier: there is no device.
func (alloc) Status() status.Dataplane { return status.Dataplane{} }

// Counters implements carrier.
func (alloc) Counters() []*metrics.Shard { return nil }
