package daemon

import (
	"context"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// alloc is flannel's backend that carries nothing: the node takes a lease and
// writes subnet.env, and something else, such as the routes of a cloud, brings
// packets from node to node.
type alloc struct{ mtu int }

func openAlloc(n node) (dataplane, error) { return alloc{n.link.MTU}, nil }

// SetLeases implements dataplane: nobody here needs to know the peers.
func (alloc) SetLeases([]lease.Lease) {}

// Run implements dataplane.
func (alloc) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close implements dataplane.
func (alloc) Close() error { return nil }

// MTU implements dataplane: nothing is put around the packets.
func (a alloc) MTU() int { return a.mtu }

// Status implements dataplane: there is no device.
func (alloc) Status() status.Dataplane { return status.Dataplane{} }

// Counters implements dataplane.
func (alloc) Counters() []*metrics.Shard { return nil }
