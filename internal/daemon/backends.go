package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/twillnet/twill/encap/udp"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/underlay"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// dataplane is what the daemon asks of an open backend.
type dataplane interface {
	// SetLeases tells the whole set of leases, the own one included.
	SetLeases([]lease.Lease)
	// Run forwards until ctx is done or something fatal happens.
	Run(ctx context.Context) error
	// Close removes what opening made. Run has returned, if it was called.
	Close() error
	// MTU is that of the pods' interfaces, in bytes.
	MTU() int
	Status() status.Dataplane
	Counters() []*metrics.Shard
}

// node is what a backend is opened with.
type node struct {
	config  *lease.Config
	own     lease.Lease
	link    underlay.Interface
	options *options
	log     *slog.Logger
}

// openBackend opens a backend; on failure nothing is left of it.
type openBackend func(node) (dataplane, error)

// backends are the backend types that a network configuration may name.
var backends = map[string]openBackend{
	"udp": openUDP,
}

// backendFor returns how to open the backend that c names.
func backendFor(backends map[string]openBackend, c *lease.Config) (openBackend, error) {
	open, ok := backends[c.Backend.Type]
	if !ok {
		return nil, fmt.Errorf("backend type %q is not supported; twilld has %s: set Backend.Type in the network configuration",
			c.Backend.Type, strings.Join(slices.Sorted(maps.Keys(backends)), ", "))
	}
	return open, nil
}

func openUDP(n node) (dataplane, error) {
	options := struct{ Port int }{8285} // flannel's default
	if err := n.config.Backend.Decode(&options); err != nil {
		return nil, err
	}
	if options.Port < 1 || options.Port > math.MaxUint16 {
		return nil, fmt.Errorf("network config: Backend.Port is %d; want 1 to 65535, or leave it out for 8285", options.Port)
	}
	b, err := udp.Open(udp.Config{
		Underlay:    n.link,
		Port:        uint16(options.Port),
		Networks:    n.config.Networks(),
		Own:         n.own,
		TunName:     n.options.tunName,
		Shards:      n.options.shards,
		TunOffload:  n.options.tunOffload,
		TunGRO:      n.options.tunGRO,
		UDPGSO:      n.options.udpGSO,
		UDPGRO:      n.options.udpGRO,
		BusyPoll:    n.options.busyPoll,
		SourceCheck: n.options.sourceCheck,
		Logger:      n.log,
	})
	if err != nil {
		return nil, err // not b, which would be a non-nil interface
	}
	return b, nil
}
