package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/twillnet/twill/encap/udp"
	"github.com/twillnet/twill/encap/vxlan"
	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/routes"
	"github.com/twillnet/twill/internal/underlay"
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
	vteps  []*vtep
	table  *routes.Table
	parts  chan part // opened, to be run

	mu   sync.Mutex
	udp  *udp.Backend // nil: no peer needs it yet
	hops []hop        // in force

	// What SetLeases knows from the last time.
	links     *onLink
	decisions map[subnets]*decided
	round     uint                          // how often decide has run
	routes    map[netip.Prefix]routes.Route // that were wanted, by Dst
	memory    *memory
	retired   bool                    // what earlier runs have left is gone
	told      map[netip.Prefix]string // why a subnet has no hop
	noted     map[string]string       // the last error by what went wrong
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
// one is left: see Choice. On failure VXLAN devices may stay, for the next plane.
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
			p.choice = p.choice.without(VXLAN, err)
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
	p.table, err = routes.Open(routes.Config{Ours: p.ours, Networks: cfg.Networks, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	p.parts <- p.table.Run
	for _, v := range p.vteps {
		p.parts <- v.Run
	}
	return p, nil
}

// checkPublic refuses plain routes where the peers would take another host's
// address for this node's.
func checkPublic(cfg Config) error {
	if !cfg.Choice.Knows(HostGW) {
		return nil
	}
	u := cfg.Underlay
	for _, a := range [][2]netip.Addr{{u.PublicIP, u.IPv4}, {u.PublicIPv6, u.IPv6}} {
		if a[0] != a[1] {
			return fmt.Errorf("backend host-gw: the public address is %s, that of interface %s is %s, and routes of the peers would lead to the former: leave out --public-ip, or choose another backend", a[0], u.Name, a[1])
		}
	}
	return nil
}

// openVXLAN opens a device for each family that the node has pods of.
func (p *Plane) openVXLAN() (err error) {
	defer func() {
		if err != nil {
			for _, v := range p.vteps {
				err = errors.Join(err, v.Delete(), v.Close())
			}
			p.vteps = nil
		}
	}()
	own := p.cfg.Own
	planned, err := planVTEPs(p.cfg.Underlay, own.Subnet.IsValid(), own.IPv6Subnet.IsValid())
	if err != nil {
		return err
	}
	for _, v := range planned {
		mac, err := p.macFor(v)
		if err != nil {
			return err
		}
		d, err := vxlan.Open(vxlan.Config{
			Options: p.cfg.Settings.VXLAN, IPv6: v.ipv6Name,
			Subnets:  slices.DeleteFunc(own.Subnets(), func(s netip.Prefix) bool { return !v.carries(s.Addr()) }),
			Networks: p.cfg.Networks, Underlay: p.cfg.Underlay, Local: v.local, MAC: mac, Logger: p.cfg.Logger,
		})
		if err != nil {
			return err
		}
		p.vteps = append(p.vteps, &vtep{d, v})
	}
	return nil
}

// macFor returns the address of the device v. Where the lease does not tell the
// others one, they take for granted that it is the node's own, and a device with
// another has to go.
func (p *Plane) macFor(v plannedVTEP) (net.HardwareAddr, error) {
	vni, u := p.cfg.Settings.VXLAN.VNI, p.cfg.Underlay
	mac, err := v.mac(u, vni)
	if err != nil || tellsVTEP(p.cfg.Own) {
		return mac, err
	}
	own := v.ownMAC(u.PublicIP, u.PublicIPv6, vni)
	if !bytes.Equal(mac, own) {
		err = vxlan.Remove(vxlan.Name(vni, v.ipv6Name))
	}
	return own, err
}

// openUDP opens the udp backend with routes for networks.
func (p *Plane) openUDP(networks []netip.Prefix) error {
	c := p.cfg.UDP
	c.Options, c.Underlay, c.Networks, c.Own, c.Logger = p.cfg.Settings.UDP, p.cfg.Underlay, networks, p.cfg.Own, p.cfg.Logger
	b, err := udp.Open(c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.udp = b
	p.mu.Unlock()
	p.parts <- b.Run
	return nil
}

// ours says of a route found on the host whether it is one of stock flannel's or
// of an earlier run: those through a VXLAN device of ours, and plain ones that
// have been written down.
func (p *Plane) ours(r routes.Route) bool {
	if r.OnLink && r.Via == r.Dst.Addr() {
		return slices.ContainsFunc(p.vteps, func(v *vtep) bool { return v.Index() == r.Dev })
	}
	return r.Dev == p.cfg.Underlay.Index && p.memory.has(r, p.cfg.Underlay.Name)
}

// retire removes the VXLAN devices that earlier runs, of twill or of stock
// flannel, have left for this cluster and that are not used any more. Their routes
// go with them, which would lead to where nobody listens.
func (p *Plane) retire() error {
	left, err := vxlan.LeftOf(p.cfg.Networks)
	errs := []error{err}
	for _, name := range left {
		if slices.ContainsFunc(p.vteps, func(v *vtep) bool { return v.Name() == name }) {
			continue
		}
		err := vxlan.Remove(name)
		if errs = append(errs, err); err == nil {
			p.cfg.Logger.Info("device of another configuration removed", logging.KeyDevice, name)
		}
	}
	return errors.Join(errs...)
}

// Run carries packets until ctx is done (the error is nil then) or something
// fatal happens, such as a device being deleted, ErrDeviceGone. It may be called
// once.
func (p *Plane) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error)
	running := 0
	var first error
	for {
		var parts chan part // not once the end has begun
		if ctx.Err() == nil {
			parts = p.parts
		} else if running == 0 {
			return first
		}
		select {
		case run := <-parts:
			running++
			go func() { ended <- run(ctx) }()
		case err := <-ended:
			running--
			if ctx.Err() == nil {
				first = explain(err)
				stop()
			}
		case <-doneOnce(ctx, parts != nil):
		}
	}
}

// doneOnce returns the channel of ctx while it is to be waited for.
func doneOnce(ctx context.Context, wait bool) <-chan struct{} {
	if !wait {
		return nil
	}
	return ctx.Done()
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

// Choice returns the ways that the plane is open for, which may be fewer than it
// was opened with.
func (p *Plane) Choice() Choice { return p.choice }

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
