package daemon

import (
	"context"
	"net/netip"
	"net/url"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// node is what a data plane is opened for. Another address, MTU, subnet or backend
// takes another data plane.
type node struct {
	config   *lease.Config
	settings backend.Settings
	choice   backend.Choice
	link     underlay.Interface
	own      lease.Lease // with the attributes that the peers know
}

// opensLike says whether a data plane that was opened for o is that of n.
func (n *node) opensLike(o *node) bool {
	return n.link.Equal(o.link) && n.own.Key() == o.own.Key() && n.settings == o.settings && n.choice.Equal(o.choice) &&
		backend.SameVTEPs(n.own.Attrs, o.own.Attrs)
}

// dataPlane is what the daemon asks of an open data plane. Status, SetIdle and Counters
// may be called from any goroutine, the rest is for the session's.
type dataPlane interface {
	// SetLeases makes the other nodes of the leases the peers. The set is
	// complete and has this node's own lease. again says that the same set is
	// worth passing again after some seconds.
	SetLeases([]lease.Lease) (again bool)
	// Run forwards until ctx is done or something fatal happens.
	Run(ctx context.Context) error
	// Close removes what opening made and what does nothing without a daemon.
	// Run has returned, if it was called.
	Close() error
	// MTU is that of the pods' interfaces, in bytes.
	MTU() int
	// Failed returns the backends that it was to have and goes on without.
	Failed() backend.Failed
	// Descriptors returns those that another process can open the same with, by
	// name. They stay the data plane's.
	Descriptors() map[string]int
	Status() status.Dataplane
	// SetIdle adds to peers of Status for how long the kernel has sent nothing to
	// them, which costs more to find out.
	SetIdle([]status.Peer)
	Counters() []*metrics.Shard
}

// openDataPlane opens the data plane of n. What is left of a failure does not keep
// the next attempt from succeeding.
func (d *daemon) openDataPlane(n node) (dataPlane, error) {
	p, err := backend.Open(backend.Config{
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
			Inherited:   d.inherited,
		},
		Record: d.options.routesFile(),
		Logger: d.log,
	})
	if err != nil {
		return nil, err // not p, which would be a non-nil interface
	}
	return p, nil
}

// inUse returns the addresses of the gateways and of etcd, as far as they are known
// without a look-up of names.
func (d *daemon) inUse() []netip.Addr {
	all, err := d.gateways()
	if err != nil {
		d.log.Warn("cannot read gateways of this host", logging.KeyError, err)
	}
	for _, e := range d.options.etcd.Endpoints {
		if u, err := url.Parse(e); err == nil {
			if a, err := netip.ParseAddr(u.Hostname()); err == nil {
				all = append(all, a.Unmap())
			}
		}
	}
	return all
}
