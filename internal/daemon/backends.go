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

// attrs is what this node tells the others about itself.
func (n *node) attrs() lease.Attrs {
	a := lease.Attrs{PublicIP: n.link.PublicIP, PublicIPv6: n.link.PublicIPv6}
	if n.config.Backend.Type == "udp" {
		a.BackendData = udp.BackendData(n.options.partialChecksums)
	}
	return a
}

// openBackend opens a backend; on failure nothing is left of it.
type openBackend func(node) (dataplane, error)

// backend is a way to carry packets.
type backend struct {
	// check finds options that no node can use, before anything is opened.
	check func(*lease.Config) error
	open  openBackend
}

// backends are the backend types that a network configuration may name.
var backends = map[string]backend{
	"alloc": {checkNothing, openAlloc},
	"udp":   {checkUDP, openUDP},
}

// stockOnly are the backend types of flannel that twilld has not.
var stockOnly = []string{"extension", "host-gw", "ipip", "ipsec", "tencent-vpc", "vxlan", "wireguard"}

// backendFor returns how to open the backend that c names. The error says what
// is wrong with what c says of it.
func backendFor(backends map[string]backend, c *lease.Config) (openBackend, error) {
	b, ok := backends[c.Backend.Type]
	if !ok {
		what := "is not supported"
		if slices.Contains(stockOnly, c.Backend.Type) {
			what = "is not supported, only flannel has it"
		}
		return nil, &backendError{fmt.Sprintf("backend type %q %s; twilld has %s: set Backend.Type in the network configuration",
			c.Backend.Type, what, strings.Join(slices.Sorted(maps.Keys(backends)), ", "))}
	}
	if err := b.check(c); err != nil {
		return nil, &backendError{err.Error()}
	}
	return b.open, nil
}

// backendError is a network configuration that is sound, but not for twilld.
type backendError struct{ msg string }

func (e *backendError) Error() string { return e.msg }

func checkNothing(*lease.Config) error { return nil }

// udpOptions are the options of the udp backend.
type udpOptions struct{ Port int }

func udpOptionsOf(c *lease.Config) (udpOptions, error) {
	o := udpOptions{Port: 8285} // flannel's default
	if err := c.Backend.Decode(&o); err != nil {
		return o, err
	}
	if o.Port < 1 || o.Port > math.MaxUint16 {
		return o, fmt.Errorf("network config: Backend.Port is %d; want 1 to 65535, or leave it out for 8285", o.Port)
	}
	return o, nil
}

func checkUDP(c *lease.Config) error {
	_, err := udpOptionsOf(c)
	return err
}

func openUDP(n node) (dataplane, error) {
	options, err := udpOptionsOf(n.config)
	if err != nil {
		return nil, err
	}
	b, err := udp.Open(udp.Config{
		Underlay:         n.link,
		Port:             uint16(options.Port),
		Networks:         n.config.Networks(),
		Own:              n.own,
		TunName:          n.options.tunName,
		Pairs:            n.options.threadPairs,
		TunOffload:       n.options.tunOffload,
		TunGRO:           n.options.tunGRO,
		UDPGSO:           n.options.udpGSO,
		UDPGRO:           n.options.udpGRO,
		PartialChecksums: n.options.partialChecksums,
		SourcePorts:      n.options.sourcePorts,
		BusyPoll:         n.options.busyPoll,
		SourceCheck:      n.options.sourceCheck,
		Logger:           n.log,
	})
	if err != nil {
		return nil, err // not b, which would be a non-nil interface
	}
	return b, nil
}
