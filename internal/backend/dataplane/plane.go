package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/udp/kernelpath"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// Config describes what a Plane connects and how.
type Config struct {
	Settings backend.Settings
	Choice   backend.Choice // empty if the settings carry no packets
	Underlay underlay.Interface
	Networks []netip.Prefix // all networks of the cluster
	Own      lease.Lease    // the lease of this node
	// InUse lists addresses, other than those of nodes, that this node needs
	// and that a misconfigured pod network may contain: those of gateways and
	// of the store.
	InUse []netip.Addr
	// Blackhole adds a route that drops packets to addresses of this node's
	// subnet that no pod uses.
	Blackhole bool
	// UDP holds the switches of the udp backend. Open fills in the fields that
	// follow from the rest of Config.
	UDP udp.Config
	// Record is the file that lists, across runs, what was added to this host.
	Record string
	Logger *slog.Logger

	release string // kernel release; empty: that of the running kernel. Tests set another.
}

// Plane is an open data plane.
type Plane struct {
	cfg    Config
	choice backend.Choice
	fell   backend.Failed // backends that Open had to do without
	vteps  []ownVTEP
	keeper *keep.Keeper
	opened chan *udp.Backend // hands a new backend to Run; holds one

	mu        sync.Mutex
	udp       *udp.Backend       // nil until a peer needs it
	paths     []*path            // in force
	unreached []status.Unreached // subnets that have no path, in order

	// State that SetLeases keeps between calls.
	self      *peer // decoded from the lease of this node
	links     *onLink
	decisions map[subnets]*decided
	round     uint                              // number of times decide has run
	inUse     []netip.Addr                      // see addressesInside
	misplaced []netip.Addr                      // see addressesInside
	reasons   map[netip.Prefix]status.Unreached // the logged reasons why subnets have no path
	shared    map[netip.Prefix]netip.Addr       // the logged endpoints of peers whose MAC address another peer has
	udpFault  string                            // the logged reason why the udp backend did not open
	claimed   bool                              // plain routes of stock flannel have been passed to keeper
	swept     bool                              // nothing is left of an earlier plane's kernel path
}

// ownVTEP is a VXLAN device of this node.
type ownVTEP struct {
	vxlan.Device
	plannedVTEP
}

// ErrDeviceGone reports that a device of the plane was deleted. Opening a new
// plane creates it again.
var ErrDeviceGone = keep.ErrDeviceGone

// Open creates or takes over the devices of the backends in cfg.Choice, in the
// network namespace of the calling thread. No packets are carried before
// SetLeases and Run.
//
// If the choice is automatic, Open does without a backend that fails as long
// as another one is left; see Failed. On failure, VXLAN devices may stay for
// the next plane.
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
	if p.choice.Opens(backend.VXLAN) {
		if err := p.openVXLAN(); err != nil {
			p.vteps = nil
			if err := p.without(backend.VXLAN, err); err != nil {
				return nil, err
			}
		}
	}
	if !cfg.UDP.UsesKernelPath() {
		if err := udp.RemoveLeft(cfg.UDP.TunName); err != nil {
			return nil, err
		}
	}
	if p.links, err = newOnLink(cfg.Underlay.Index); err != nil {
		return nil, err
	}
	// As a fallback, udp is opened when the first peer needs it. As a former backend, it
	// has inherited the descriptors of the previous plane, or was not open there.
	formerUDP := slices.Contains(p.choice.Former, backend.UDP) && len(cfg.UDP.Inherited) > 0
	if p.choice.First() == backend.UDP || formerUDP {
		if err := p.openUDP(); err != nil {
			if err := p.without(backend.UDP, err); err != nil {
				return nil, err
			}
		}
	}
	p.checkAnnounced()
	return p, nil
}

// without drops a backend that Open could not open, if the node can do
// without it. Otherwise it returns the reason.
func (p *Plane) without(k backend.Kind, why error) (err error) {
	switch {
	case slices.Contains(p.choice.Former, k):
		p.cfg.Logger.Warn("cannot keep former backend open, packets of peers that still use it are lost", logging.KeyBackends, k, logging.KeyWhy, why)
		return nil
	case k != backend.VXLAN || !p.choice.Auto || !p.choice.Has(backend.UDP):
		return why
	}
	p.fell = backend.Failed{k: why}
	if p.choice, err = p.cfg.Settings.Choose(p.fell); err != nil {
		return err
	}
	p.cfg.Logger.Warn("backend unavailable, falling back", logging.KeyWhy, p.choice.Why, logging.KeyBackends, p.choice.Kinds)
	return nil
}

// checkPublic rejects plain routes if the public address is not that of the
// interface: the routes of peers would lead to another host.
func checkPublic(cfg Config) error {
	if !cfg.Choice.Has(backend.HostGW) {
		return nil
	}
	u := cfg.Underlay
	for _, a := range [][2]netip.Addr{{u.PublicIP, u.IPv4}, {u.PublicIPv6, u.IPv6}} {
		if a[0] != a[1] {
			return fmt.Errorf("backend host-gw: public address %s is not the address %s of interface %s, and the peers' routes would lead to the former: omit --public-ip, or choose another backend", a[0], a[1], u.Name)
		}
	}
	return nil
}

// checkAnnounced warns if the lease announces a backend that this node does not
// have. It can happen with leases in a file, which a node cannot change.
func (p *Plane) checkAnnounced() {
	if !p.cfg.Settings.Carries() {
		return
	}
	for _, k := range p.self.kinds {
		if !p.choice.Has(k) {
			p.cfg.Logger.Warn("lease of this node announces a backend that it does not use, packets that peers send by it are lost",
				logging.KeyBackends, k, logging.KeyRemedy, fmt.Sprintf("set \"BackendType\": %q in its lease", p.choice.First()))
		}
	}
}

// checkMTU rejects an interface whose MTU leaves too little for packets of
// pods. asked is the MTU of the network configuration, mtu that of the device.
func (p *Plane) checkMTU(device string, asked int, mtu encap.TunnelMTU, overhead int, ipv6 bool) error {
	u := p.cfg.Underlay
	if asked > u.MTU {
		p.cfg.Logger.Warn("MTU in the network config exceeds that of the interface, using the interface's",
			logging.KeyDevice, device, logging.KeyWas, asked, logging.KeyNow, u.MTU)
	}
	if !mtu.Usable(ipv6) {
		return fmt.Errorf("create %s: interface %s: MTU %d leaves only %d bytes for packets of pods: raise it to %d or more",
			device, u.Name, int(mtu)+overhead, mtu, int(encap.Least(ipv6))+overhead)
	}
	return nil
}

// openVXLAN creates or takes over a device for each address family in which the
// node has pods.
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

// kernelRelease returns the release of the kernel, such as "6.1.0-37-amd64".
func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("read kernel release: %w", os.NewSyscallError("uname", err))
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// macOf returns the Ethernet address of the device v: the one that the lease
// announces or will announce. A former device keeps its own.
func (p *Plane) macOf(v plannedVTEP) []byte {
	if !p.choice.Has(backend.VXLAN) {
		if mac, err := vxlan.Existing(p.cfg.Settings.VXLAN.VNI, v.ipv6Name); err == nil && mac != nil {
			return mac
		}
	}
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
	c.UDPOptions, c.Underlay, c.Subnets, c.Logger = p.cfg.Settings.UDP, p.cfg.Underlay, own.Subnets(), p.cfg.Logger
	c.PartialAnnounced, c.Keeper = p.self.partial, p.keeper
	local, err := udp.LocalAddr(c.Underlay)
	if err != nil {
		return err
	}
	mtu, err := udp.TunnelMTU(c.UDPOptions, c.Underlay)
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

// Run carries packets until ctx is done, in which case the error is nil, or
// until a fatal error such as ErrDeviceGone, the deletion of a device. It may
// be called once.
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
				return errors.New("the data plane ended unexpectedly")
			case errors.Is(err, fastpath.ErrDeviceGone):
				return fmt.Errorf("%w: %w", ErrDeviceGone, err)
			}
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// Close releases what Open created; Run must have returned. The TUN device is
// removed. VXLAN devices and routes stay, so that pods stay connected while the
// daemon is down, and the next plane takes them over.
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

// Failed returns the backends of the choice that Open had to do without.
func (p *Plane) Failed() backend.Failed { return p.fell }

// Clean removes what earlier planes, and stock flannel, left on the host: the TUN
// device tun and the kernel path, VXLAN devices, the plain routes listed in the file record, and
// blackhole routes to subnets and in networks, which are those of the last run. It
// logs each removed object. It fails with ErrInUse, and removes nothing, while the
// TUN device is open.
func Clean(tun string, networks, subnets []netip.Prefix, record string, log *slog.Logger) error {
	err := keep.Clean(tun, keep.Config{Networks: networks, Subnets: subnets, Owned: vxlan.Names, Record: record, Logger: log})
	if errors.Is(err, ErrInUse) {
		return err
	}
	err = errors.Join(err, kernelpath.RemoveDead())
	if !kernelpath.Left(tun) {
		return err
	}
	left := kernelpath.Remove(tun)
	if left == nil {
		log.Info("kernel path removed", logging.KeyDevice, tun)
	}
	return errors.Join(err, left)
}

// ErrInUse reports that a daemon has the TUN device open.
var ErrInUse = keep.ErrInUse

func (p *Plane) backend() *udp.Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.udp
}

// Descriptors returns, by name, the file descriptors with which another process
// can open the same plane; see Config.UDP.Inherited. The plane still owns them.
func (p *Plane) Descriptors() map[string]int {
	if b := p.backend(); b != nil {
		return b.Descriptors()
	}
	return nil
}

// Counters returns the counters of each shard of the udp backend, or nil if it is
// not open.
func (p *Plane) Counters() []*metrics.Shard {
	if b := p.backend(); b != nil {
		return b.Counters()
	}
	return nil
}

// MTU returns the size, in bytes, of the largest packet that pods may send: one
// that fits every backend that may be used.
func (p *Plane) MTU() int {
	mtu := p.cfg.Underlay.MTU
	if p.choice.Has(backend.VXLAN) {
		for i := range p.vteps {
			mtu = min(mtu, int(p.vteps[i].TunnelMTU()))
		}
	}
	if p.choice.Has(backend.UDP) {
		// Open has already rejected invalid options.
		if m, err := udp.TunnelMTU(p.cfg.Settings.UDP, p.cfg.Underlay); err == nil {
			mtu = min(mtu, int(m))
		}
	}
	return mtu
}
