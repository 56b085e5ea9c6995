package daemon

import (
	"context"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// carrier is what the daemon asks of an open data plane.
type carrier interface {
	// SetLeases tells the whole set of leases, the own one included. again says
	// that the same are worth telling again after some seconds.
	SetLeases([]lease.Lease) (again bool)
	// Run forwards until ctx is done or something fatal happens.
	Run(ctx context.Context) error
	// Close removes what opening made and cannot do without a daemon. Run has
	// returned, if it was called.
	Close() error
	// MTU is that of the pods' interfaces, in bytes.
	MTU() int
	// Choice is the ways that it is open for, which may be fewer than it was
	// to have.
	Choice() backend.Choice
	Status() status.Dataplane
	Counters() []*metrics.Shard
}

// openCarrier opens the data plane of a node; on failure the next attempt can do
// with what is left of it.
type openCarrier func(node) (carrier, error)

// open opens the data plane that the settings of the node ask for.
func open(n node) (carrier, error) {
	if !n.settings.Carries() {
		return alloc{n.link.MTU}, backend.Clear(n.config.Networks(), n.options.routesFile(), n.log)
	}
	p, err := backend.Open(backend.Config{
		Settings: n.settings,
		Choice:   n.choice,
		Underlay: n.link,
		Networks: n.config.Networks(),
		Own:      n.own,
		UDP: udp.Config{
			TunName:     n.options.tunName,
			Pairs:       n.options.threadPairs,
			Switches:    n.options.switches,
			SourceCheck: n.options.sourceCheck,
		},
		Memory: n.options.routesFile(),
		Logger: n.log,
	})
	if err != nil {
		return nil, err // not p, which would be a non-nil interface
	}
	return p, nil
}

// settingsError is a network configuration that is sound, but not for twilld.
type settingsError struct{ error }

// settings returns what c asks of this node.
func (d *daemon) settings(c *lease.Config) (backend.Settings, error) {
	s, err := backend.SettingsOf(c, string(d.options.backend))
	if err != nil {
		return s, &settingsError{err}
	}
	return s, nil
}

// plan makes n a node of the network that c describes, with the ways that are
// possible here; those that it has stay while c asks for the same. On failure n is
// as it was.
func (d *daemon) plan(n *node, c *lease.Config) error {
	s, err := d.settings(c)
	if err != nil {
		return err
	}
	choice := n.choice
	if n.config == nil || s != n.settings {
		choice = backend.Choice{}
	}
	if s.Carries() && choice.Ways == nil {
		if choice, err = s.Choose(d.probes); err != nil {
			return &settingsError{err}
		}
	}
	n.config, n.settings, n.choice = c, s, choice
	return nil
}
