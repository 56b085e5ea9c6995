package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/routes"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// Config says what a Plane connects and how.
type Config struct {
	Settings Settings
	Choice   Choice
	Underlay underlay.Interface
	Networks []netip.Prefix // of the whole cluster
	Own      lease.Lease    // the lease of this node
	// UDP holds the switches of the udp backend. What is said above goes into
	// it by itself.
	UDP udp.Config
	// Memory is the file that says, across runs, which plain routes are twill's.
	Memory string
	Logger *slog.Logger
}

// Plane is an open data plane.
type Plane struct {
	cfg    Config
	choice Choice
	fell   Failed // what Open goes on without
	vteps  []*vtep
	table  *routes.Table // nil before the first leases
	parts  chan part     // opened, to be run

	mu   sync.Mutex
	udp  *udp.Backend // nil: no peer needs it yet
	hops []*hop       // in force

	// What SetLeases knows from the last time.
	links     *onLink
	decisions map[subnets]*decided
	round     uint                          // how often decide has run
	routes    map[netip.Prefix]routes.Route // that were wanted, by Dst
	memory    *memory
	retired   bool                    // what earlier runs have left is gone
	told      map[netip.Prefix]string // why a subnet has no hop
	noted     map[string]string       // the last error by what went wrong
	failed    bool                    // something went wrong this time
}

// vtep is an open VXLAN device.
type vtep struct {
	*vxlan.Device
	plannedVTEP
}

// part is something that runs for as long as the plane does.
type part func(context.Context) error

// maxParts is how many there can be: routes, two VXLAN devices, udp.
const maxParts = 4

// ErrDeviceGone says that somebody has deleted a device of the plane. A new plane
// makes it anew.
var ErrDeviceGone = errors.New("device is gone")

// Open makes or takes over the devices of the ways in cfg.Choice, in the network
// namespace of the calling thread. Nothing is carried before SetLeases and Run.
//
// Where the choice is automatic it goes on without a way that fails, as long as
// one is left: see Failed. On failure VXLAN devices may stay, for the next plane.
func Open(cfg Config) (_ *Plane, err error) {
	p := &Plane{cfg: cfg, choice: cfg.Choice, parts: make(chan part, maxParts), noted: make(map[string]string), decisions: make(map[subnets]*decided)}
	if err := checkPublic(cfg); err != nil {
		return nil, err
	}
	if p.choice.Knows(VXLAN) {
		if err := p.openVXLAN(); err != nil {
			if !p.choice.Auto || !p.choice.Knows(UDP) {
				return nil, err
			}
			p.fell = Failed{VXLAN: err}
			if p.choice, err = cfg.Settings.Choose(p.fell); err != nil {
				return nil, err
			}
			cfg.Logger.Warn("backend cannot be had, going on with the next", logging.KeyWhy, p.choice.Why, logging.KeyBackends, p.choice.Ways)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if p.links, err = newOnLink(cfg.Underlay.Index); err != nil {
		return nil, err
	}
	if p.choice.First() == UDP {
		if err := p.openUDP(cfg.Networks); err != nil {
			return nil, err
		}
	}
	if p.memory, err = openMemory(cfg.Memory); err != nil {
		return nil, err
	}
	for _, v := range p.vteps {
		p.parts <- v.Run
	}
	p.checkTold()
	return p, nil
}

// checkTold warns of a lease that tells the others what is not so. A node cannot
// write to a file.
func (p *Plane) checkTold() {
	for _, w := range waysOf(p.cfg.Own) {
		if !p.choice.Knows(w) {
			p.cfg.Logger.Warn("the lease of this node tells the others of a backend that it has not, they may send where nobody listens",
				logging.KeyBackends, w, logging.KeyRemedy, fmt.Sprintf("set \"BackendType\": %q in its lease", p.choice.First()))
		}
	}
}

// Run carries packets until ctx is done (the error is nil then) or something
// fatal happens, such as a device being deleted, ErrDeviceGone. It may be called
// once.
func (p *Plane) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	ended := make(chan error, maxParts)
	for {
		select {
		case run := <-p.parts:
			running.Go(func() { ended <- run(ctx) })
		case err := <-ended:
			if ctx.Err() != nil {
				return nil
			}
			return explain(err)
		case <-ctx.Done():
			return nil
		}
	}
}

// explain makes the errors of all backends one, where they mean the same.
func explain(err error) error {
	switch {
	case err == nil:
		return errors.New("a part of the data plane ended by itself")
	case errors.Is(err, fastpath.ErrDeviceGone), errors.Is(err, vxlan.ErrDeviceGone):
		return fmt.Errorf("%w: %w", ErrDeviceGone, err)
	}
	return err
}

// Close ends what Open has begun; Run must have returned. The TUN device goes.
// VXLAN devices and routes stay, so that pods go on talking while there is no
// daemon; a plane that comes after takes them over.
func (p *Plane) Close() error {
	var errs []error
	if p.table != nil {
		errs = append(errs, p.table.Close(false))
	}
	if b := p.backend(); b != nil {
		errs = append(errs, b.Close())
	}
	for _, v := range p.vteps {
		errs = append(errs, v.Close())
	}
	if p.links != nil {
		p.links.close()
	}
	return errors.Join(errs...)
}

// Failed returns those backends of the choice that Open goes on without.
func (p *Plane) Failed() Failed { return p.fell }

func (p *Plane) backend() *udp.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.udp
}

// Counters returns the counters of each shard of the udp backend, nil while it
// is not open.
func (p *Plane) Counters() []*metrics.Shard {
	if b := p.backend(); b != nil {
		return b.Counters()
	}
	return nil
}

// MTU returns the largest packet, in bytes, that pods may send: one that every
// way which may come to be used carries whole.
func (p *Plane) MTU() int {
	mtu := p.cfg.Underlay.MTU
	for _, v := range p.vteps {
		mtu = min(mtu, v.MTU())
	}
	if p.choice.Knows(UDP) {
		// Open has refused what is wrong with it.
		if m, err := p.cfg.Settings.UDP.TunnelMTU(p.cfg.Underlay); err == nil {
			mtu = min(mtu, int(m))
		}
	}
	return mtu
}
