//go:build linux && amd64 && cgo

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/lease"
	"github.com/flannel-io/flannel/pkg/subnet"
)

// leases is flannel's subnet.Manager over a fixed set of leases.
// The udp backend calls it for the network config, the node's own lease, and
// one watch of all leases; the remaining methods are used only by flanneld itself
// and return errors.
type leases struct {
	node node
	// delivered is closed when the backend has received every peer.
	delivered chan struct{}
}

var _ subnet.Manager = (*leases)(nil)

var errNotUsed = errors.New("not used by the udp backend")

func newLeases(n node) *leases {
	return &leases{node: n, delivered: make(chan struct{})}
}

// GetNetworkConfig uses flannel's own parser and checks, as for the value
// of etcd's config key.
func (l *leases) GetNetworkConfig(context.Context) (*subnet.Config, error) {
	c, err := subnet.ParseConfig(fmt.Sprintf(
		`{"Network": %q, "SubnetLen": %d, "Backend": {"Type": "udp"}}`,
		l.node.network, l.node.subnet.Bits()))
	if err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	if err := subnet.CheckNetworkConfig(c); err != nil {
		return nil, fmt.Errorf("network config: %w", err)
	}
	return c, nil
}

func (l *leases) AcquireLease(_ context.Context, attrs *lease.LeaseAttrs) (*lease.Lease, error) {
	own := newLease(l.node.subnet, l.node.publicIP)
	own.Attrs = *attrs
	return &own, nil
}

// WatchLeases sends the peers and keeps the watch open until ctx ends. Closing
// the channel ends the backend.
//
// Unlike in etcd's snapshots, the node's own lease is left out: flannel skips it
// in the first snapshot but reports it as removed in the second.
func (l *leases) WatchLeases(ctx context.Context, receiver chan []lease.LeaseWatchResult) error {
	defer close(receiver)
	var peers []lease.Lease
	for _, p := range l.node.peers {
		peers = append(peers, newLease(p.subnet, p.publicIP))
	}
	// The channel has no buffer: once flannel has received the snapshot a second
	// time, which changes nothing, it has processed the first.
	for range 2 {
		select {
		case receiver <- []lease.LeaseWatchResult{{Snapshot: peers}}:
		case <-ctx.Done():
			return nil
		}
	}
	close(l.delivered)
	<-ctx.Done()
	return nil
}

func (l *leases) Name() string { return "command line" }

func (l *leases) RenewLease(context.Context, *lease.Lease) error { return errNotUsed }

func (l *leases) WatchLease(context.Context, ip.IP4Net, ip.IP6Net, chan []lease.LeaseWatchResult) error {
	return errNotUsed
}

func (l *leases) CompleteLease(context.Context, *lease.Lease, *sync.WaitGroup) error {
	return errNotUsed
}

func (l *leases) HandleSubnetFile(string, *subnet.Config, bool, ip.IP4Net, ip.IP6Net, int) error {
	return errNotUsed
}

func (l *leases) GetStoredMacAddresses(context.Context) (string, string) { return "", "" }

func (l *leases) GetStoredPublicIP(context.Context) (string, string) { return "", "" }

func newLease(pods netip.Prefix, host netip.Addr) lease.Lease {
	return lease.Lease{
		EnableIPv4: true,
		Subnet:     ip.IP4Net{IP: ip.FromIP(pods.Addr().AsSlice()), PrefixLen: uint(pods.Bits())},
		Attrs:      lease.LeaseAttrs{PublicIP: ip.FromIP(host.AsSlice())},
		Expiration: time.Now().Add(24 * time.Hour),
	}
}
