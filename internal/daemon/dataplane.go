package daemon

import (
	"context"
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/metrics"
)

// node holds the parameters for which a data plane is opened. A change of address,
// MTU, subnet or backend requires a new data plane.
type node struct {
	config   *lease.Config
	settings backend.Settings
	choice   backend.Choice
	link     underlay.Interface
	own      lease.Lease // with the attributes known to the peers
}

// opensLike reports whether a data plane opened for n also fits o.
func (n *node) opensLike(o *node) bool {
	return n.link.Equal(o.link) && n.own.Key() == o.own.Key() && n.settings == o.settings && n.choice.Equal(o.choice) &&
		dataplane.SameVTEPs(n.own.Attrs, o.own.Attrs)
}

// difference returns why a data plane opened for n does not fit o.
func (n *node) difference(o *node) metrics.Restart {
	switch {
	case !n.link.Equal(o.link):
		return metrics.RestartInterface
	case n.own.Key() != o.own.Key():
		return metrics.RestartLease
	}
	return metrics.RestartBackend
}

// dataPlane is an open data plane. Status, SetIdle, Counters and Traffic may be called from
// any goroutine, the other methods only from the session's.
type dataPlane interface {
	// SetLeases makes the other nodes of the leases the peers. The set is complete
	// and includes this node's own lease. again reports that the same set should
	// be passed again after some seconds.
	SetLeases([]lease.Lease) (again bool)
	// Run forwards until ctx is done or something fatal happens.
	Run(ctx context.Context) error
	// Close removes what opening created and what is useless without a daemon. If
	// Run was called, it must have returned.
	Close() error
	// MTU returns the MTU of the pods' interfaces, in bytes.
	MTU() int
	// Failed returns the wanted backends that could not be opened.
	Failed() backend.Failed
	// Descriptors returns, by name, the descriptors with which another process can
	// open the same data plane. The data plane keeps ownership.
	Descriptors() map[string]int
	Status() status.Dataplane
	// SetIdle adds to peers returned by Status how long the kernel has sent
	// nothing to them, which is more expensive to determine.
	SetIdle([]status.Peer)
	Counters() []*metrics.Shard
	// Traffic returns what each backend has carried, where that can be counted.
	Traffic() []metrics.BackendTraffic
}

// openDataPlane opens the data plane for n. Remains of a failed attempt do not
// prevent the next one from succeeding.
func (d *daemon) openDataPlane(n node) (dataPlane, error) {
	p, err := dataplane.Open(dataplane.Config{
		Settings:  n.settings,
		Choice:    n.choice,
		Underlay:  n.link,
		Networks:  n.config.Networks(),
		Own:       n.own,
		InUse:     d.inUse(),
		Blackhole: d.options.blackhole,
		UDP: udp.Config{
			TunName:     d.options.tunName,
			Pairs:       d.options.threadPairs,
			Switches:    d.options.switches,
			SourceCheck: d.options.sourceCheck,
			Memory:      d.options.memory,
			MTUFloor:    d.options.mtuFloor,
			Taps:        &d.taps,
			KernelPath:  d.options.kernelPath, KernelRefused: d.kernelRefused,
			Inherited: d.inherited,
		},
		Record: d.options.routesFile(),
		Logger: d.log,
	})
	if err != nil {
		return nil, err // not p, which would be a non-nil interface
	}
	return p, nil
}

// probePeers starts to probe the peers if that is wanted, in the network namespace of the
// calling thread. The returned function ends it.
func (d *daemon) probePeers(ctx context.Context) (end func()) {
	if d.state.probes == nil {
		return func() {}
	}
	sockets, err := echo.OpenSockets()
	if err != nil {
		d.log.Warn("cannot probe peers", logging.KeyError, err, logging.KeyRemedy, "give twilld the capability CAP_NET_RAW, or omit --probe-interval")
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.state.probes.Run(ctx, sockets)
		_ = sockets.Close() // no pending writes could be lost
	}()
	return func() { cancel(); <-done }
}

// inUse returns the addresses of the gateways and of etcd. etcd's host names are
// resolved once, so that no later data plane waits for a name server.
func (d *daemon) inUse() []netip.Addr {
	all, err := d.gateways()
	if err != nil {
		d.log.Warn("cannot read gateways of this host", logging.KeyError, err)
	}
	if d.etcdAddrs != nil {
		return append(all, d.etcdAddrs...)
	}
	addrs, err := etcd.EndpointAddrs(context.Background(), d.options.etcd.Endpoints)
	if err != nil {
		d.log.Warn("cannot resolve etcd's address, a pod subnet that contains it would not be detected", logging.KeyError, err,
			logging.KeyRemedy, "make the name resolvable on this host, or configure etcd by its address")
	} else {
		d.etcdAddrs = addrs
	}
	return append(all, addrs...)
}

// probeKernelPath finds out whether the kernel path can be used, if it is wanted.
func (d *daemon) probeKernelPath(ctx context.Context) error {
	why, err := d.options.kernelPath.Probe(ctx)
	if err == nil && why != nil {
		d.log.Warn("kernel path unavailable, user space carries all packets", logging.KeyWhy, why)
	}
	d.kernelRefused = why
	return err
}

func (d *daemon) usesKernelPath() bool {
	return d.options.kernelPath != udp.KernelPathOff && d.kernelRefused == nil
}
