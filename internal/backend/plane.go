package backend

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// Config says what a Plane connects and how.
type Config struct {
	Settings Settings
	Choice   Choice // empty where the settings carry no packets
	Underlay underlay.Interface
	Networks []netip.Prefix // of the whole cluster
	Own      lease.Lease    // the lease of this node
	// InUse are addresses besides the nodes' that pods' networks may contain by
	// mistake and that this node needs: of gateways and of the store.
	InUse []netip.Addr
	// Blackhole asks for a route that drops packets to pods of this node that
	// are not there.
	Blackhole bool
	// UDP holds the switches of the udp backend. What is said above goes into
	// it by itself.
	UDP udp.Config
	// Record is the file that says, across runs, what this host was given.
	Record string
	Logger *slog.Logger

	release string // of the kernel; empty: ask it. Tests pretend another.
}

// Plane is an open data plane.
type Plane struct {
	cfg    Config
	choice Choice
	fell   Failed // what Open goes on without
	vteps  []ownVTEP
	keeper *keep.Keeper
	opened chan *udp.Backend // to be run; holds one

	mu    sync.Mutex
	udp   *udp.Backend // nil: no peer needs it yet
	paths []*path      // in force

	// What SetLeases knows from the last time.
	self      *peer // of the lease of this node
	links     *onLink
	decisions map[subnets]*decided
	round     uint                        // how often decide has run
	inUse     []netip.Addr                // in the networks, see addressesInUse
	reasons   map[netip.Prefix]string     // why a subnet has no path, as logged
	shared    map[netip.Prefix]netip.Addr // endpoints of peers whose MAC another has, as logged
	udpFault  string                      // why the udp backend did not open, as logged
	claimed   bool                        // keeper knows the plain routes of stock flannel
}

// ownVTEP is a VXLAN device of this node.
type ownVTEP struct {
	vxlan.Device
	plannedVTEP
}

// ErrDeviceGone reports that a device of the plane was deleted. A new plane makes
// it again.
var ErrDeviceGone = keep.ErrDeviceGone

// Open makes or takes over the devices of the backends in cfg.Choice, in the
// network namespace of the calling thread. Nothing is carried before SetLeases and
// Run.
//
// Where the choice is automatic it goes on without a backend that fails, as long
// as one is left: see Failed. On failure VXLAN devices may stay, for the next
// plane.
func Open(cfg Config) (_ *Plane, err error) {
	p := &Plane{
		cfg: cfg, choice: cfg.Choice, opened: make(chan *udp.Backend, 1), decisions: make(map[subnets]*decided),
		self: decode(cfg.Own, cfg.Settings.VXLAN.VNI),
	}
	if err := checkPublic(cfg); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	p.keeper, err = keep.Open(keep.Config{
		Networks: cfg.Networks, Subnets: cfg.Own.Subnets(), Owned: vxlan.Names, Record: cfg.Record, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	if p.choice.Has(VXLAN) {
		if err := p.openVXLAN(); err != nil {
			p.vteps = nil
			if !p.choice.Auto || !p.choice.Has(UDP) {
				return nil, err
			}
			p.fell = Failed{VXLAN: err}
			if p.choice, err = cfg.Settings.Choose(p.fell); err != nil {
				return nil, err
			}
			cfg.Logger.Warn("backend unavailable, falling back", logging.KeyWhy, p.choice.Why, logging.KeyBackends, p.choice.Kinds)
		}
	}
	if p.links, err = newOnLink(cfg.Underlay.Index); err != nil {
		return nil, err
	}
	if p.choice.First() == UDP {
		if err := p.openUDP(); err != nil {
			return nil, err
		}
	}
	p.checkAnnounced()
	return p, nil
}

// checkPublic refuses plain routes where the peers would take another host's
// address for this node's.
func checkPublic(cfg Config) error {
	if !cfg.Choice.Has(HostGW) {
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

// checkAnnounced warns of a lease that announces what is not so. A node cannot
// write to a file.
func (p *Plane) checkAnnounced() {
	if !p.cfg.Settings.Carries() {
		return
	}
	for _, k := range p.self.kinds {
		if !p.choice.Has(k) {
			p.cfg.Logger.Warn("the lease of this node announces a backend that it does not have, peers may send where nobody listens",
				logging.KeyBackends, k, logging.KeyRemedy, fmt.Sprintf("set \"BackendType\": %q in its lease", p.choice.First()))
		}
	}
}

// checkMTU refuses an interface that leaves too little for packets of pods. asked
// is the MTU of the network configuration, mtu what device has.
func (p *Plane) checkMTU(device string, asked int, mtu encap.TunnelMTU, overhead int, ipv6 bool) error {
	u := p.cfg.Underlay
	if asked > u.MTU {
		p.cfg.Logger.Warn("MTU of the network configuration exceeds that of the interface, which is used",
			logging.KeyDevice, device, logging.KeyWas, asked, logging.KeyNow, u.MTU)
	}
	if !mtu.Usable(ipv6) {
		return fmt.Errorf("make %s: interface %s: MTU %d leaves %d bytes for packets of pods, too few: raise it to %d or more",
			device, u.Name, int(mtu)+overhead, mtu, int(encap.Least(ipv6))+overhead)
	}
	return nil
}

// openVXLAN makes or takes over a device for each family that the node has pods
// of.
func (p *Plane) openVXLAN() error {
	own := p.cfg.Own
	planned, err := planVTEPs(p.cfg.Underlay, own.Subnet.IsValid(), own.IPv6Subnet.IsValid())
	if err != nil {
		return err
	}
	if p.cfg.release == "" {
		if p.cfg.release, err = kernelRelease(); err != nil {
			return err
		}
	}
	var links []keep.Link
	for _, v := range planned {
		d := vxlan.Device{Options: p.cfg.Settings.VXLAN, IPv6: v.ipv6Name, Underlay: p.cfg.Underlay, Local: v.local, MAC: p.macOf(v)}
		for _, s := range own.Subnets() {
			if v.carries(s.Addr()) {
				d.Subnets = append(d.Subnets, s)
			}
		}
		if err := d.Check(); err != nil {
			return err
		}
		if err := p.checkMTU(d.Name(), d.MTU, d.TunnelMTU(), vxlan.Overhead(v.local), v.ipv6); err != nil {
			return err
		}
		p.vteps = append(p.vteps, ownVTEP{d, v})
		links = append(links, d.Link(p.cfg.release))
	}
	return p.keeper.Ensure(links...)
}

// kernelRelease returns the version of the kernel, such as "6.1.0-37-amd64".
func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read the kernel's version: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// macOf returns the Ethernet address of the device v: the one that the lease
// announces, or is about to.
func (p *Plane) macOf(v plannedVTEP) []byte {
	announced := p.self.v6
	if v.ipv4 {
		announced = p.self.v4
	}
	if vni := p.cfg.Settings.VXLAN.VNI; announced.err != nil || announced.VNI != vni {
		return v.ownMAC(p.cfg.Underlay, vni)
	}
	return announced.VtepMAC
}

// openUDP opens the udp backend.
func (p *Plane) openUDP() error {
	c, own := p.cfg.UDP, p.cfg.Own
	c.Options, c.Underlay, c.Subnets, c.Logger = p.cfg.Settings.UDP, p.cfg.Underlay, own.Subnets(), p.cfg.Logger
	c.PartialAnnounced, c.Keeper = p.self.partial, p.keeper
	local, err := udp.LocalAddr(c.Underlay)
	if err != nil {
		return err
	}
	mtu, err := c.TunnelMTU(c.Underlay)
	if err != nil {
		return err
	}
	if err := p.checkMTU(c.TunName, c.MTU, mtu, encap.Overhead(local), own.IPv6Subnet.IsValid()); err != nil {
		return err
	}
	b, err := udp.Open(c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.udp = b
	p.mu.Unlock()
	p.opened <- b
	return nil
}

// Run carries packets until ctx is done (the error is nil then) or something
// fatal happens, such as a device being deleted, ErrDeviceGone. It may be called
// once.
func (p *Plane) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	ended := make(chan error, 2)
	running.Go(func() { ended <- p.keeper.Run(ctx) })
	for {
		select {
		case b := <-p.opened:
			running.Go(func() { ended <- b.Run(ctx) })
		case err := <-ended:
			switch {
			case ctx.Err() != nil:
				return nil
			case err == nil:
				return errors.New("a part of the data plane ended by itself")
			case errors.Is(err, fastpath.ErrDeviceGone):
				return fmt.Errorf("%w: %w", ErrDeviceGone, err)
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// Close ends what Open has begun; Run must have returned. The TUN device goes.
// VXLAN devices and routes stay, so that pods go on talking while there is no
// daemon; a plane that comes after takes them over.
func (p *Plane) Close() error {
	var errs []error
	if b := p.backend(); b != nil {
		errs = append(errs, b.Close())
	}
	if p.keeper != nil {
		errs = append(errs, p.keeper.Close())
	}
	if p.links != nil {
		p.links.close()
	}
	return errors.Join(errs...)
}

// Failed returns those backends of the choice that Open goes on without.
func (p *Plane) Failed() Failed { return p.fell }

// Clean removes what planes of earlier runs, and stock flannel, have left on the
// host: VXLAN devices, the plain routes that the file record lists, blackhole
// routes to subnets and in networks, which are those of the last run. It logs each
// thing that it has removed.
func Clean(networks, subnets []netip.Prefix, record string, log *slog.Logger) error {
	return keep.Clean(keep.Config{Networks: networks, Subnets: subnets, Owned: vxlan.Names, Record: record, Logger: log})
}

func (p *Plane) backend() *udp.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.udp
}

// Descriptors returns those with which another process can open the same plane, by
// name, for Config.UDP.Inherited. They stay the plane's.
func (p *Plane) Descriptors() map[string]int {
	if b := p.backend(); b != nil {
		return b.Descriptors()
	}
	return nil
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
// backend which may come to be used carries whole.
func (p *Plane) MTU() int {
	mtu := p.cfg.Underlay.MTU
	for i := range p.vteps {
		mtu = min(mtu, int(p.vteps[i].TunnelMTU()))
	}
	if p.choice.Has(UDP) {
		// Open has refused what is wrong with it.
		if m, err := p.cfg.Settings.UDP.TunnelMTU(p.cfg.Underlay); err == nil {
			mtu = min(mtu, int(m))
		}
	}
	return mtu
}
