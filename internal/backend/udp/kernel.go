package udp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp/kernelpath"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// KernelPath selects whether the kernel carries packets to and from peers that announce
// the kernel path too. It is a flag.Value.
type KernelPath uint8

const (
	// KernelPathOff: user space carries everything.
	KernelPathOff KernelPath = iota
	// KernelPathAuto: the kernel, if the self-test passes.
	KernelPathAuto
	// KernelPathTC: the kernel, and it is an error if the self-test does not pass.
	KernelPathTC
)

var kernelPathNames = [...]string{KernelPathOff: "off", KernelPathAuto: "auto", KernelPathTC: "tc"}

// String returns "off", "auto" or "tc".
func (k KernelPath) String() string { return kernelPathNames[k] }

// Set parses a flag's value (flag.Value).
func (k *KernelPath) Set(v string) error {
	for i, n := range kernelPathNames {
		if v == n {
			*k = KernelPath(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of off, auto, tc", v)
}

// required returns nil unless k requires the path; then it returns an error that wraps why,
// the reason why the path cannot be used.
func (k KernelPath) required(why error) error {
	if k != KernelPathTC {
		return nil
	}
	return fmt.Errorf("--%s=%s: %w; use --%[1]s=auto to run without it", backend.KernelPathFlag, k, why)
}

// Probe runs the self-test of the kernel path unless k is KernelPathOff. It takes less
// than a second and leaves nothing behind. why is the reason why the path cannot be used.
// err is set too if k requires the path.
func (k KernelPath) Probe(ctx context.Context) (why, err error) {
	if k == KernelPathOff {
		return nil, nil
	}
	if why = kernelpath.SelfTest(ctx); why != nil {
		return why, k.required(why)
	}
	return nil, nil
}

const (
	// kernelTick is the interval at which the kernel's counters are read.
	kernelTick = time.Second
	// kernelRetry is how long to wait before a failed update is tried again.
	kernelRetry = 5 * time.Second
)

// kernel is the kernel's part of a Backend.
type kernel struct {
	path     *kernelpath.Path
	engine   *fastpath.Engine
	own      []netip.Prefix
	counters metrics.Shard
	logger   *slog.Logger

	mu      sync.Mutex
	peers   []Peer
	set     []kernelpath.Peer   // the peers last passed to the kernel
	updated time.Time           // when they were
	left    map[netip.Addr]bool // those of them that it has no room for
	full    bool                // this was logged
	fault   string              // the logged reason why the kernel did not take all others; empty if it did
	counted map[netip.Addr]kernelpath.Traffic
}

// UsesKernelPath reports whether a backend with this configuration opens the kernel path.
func (c *Config) UsesKernelPath() bool {
	return c.KernelPath != KernelPathOff && c.KernelRefused == nil
}

// openKernel opens the kernel path if it is wanted. If KernelPathAuto fails to open it,
// b.kernel stays nil.
func (b *Backend) openKernel() error {
	if !b.cfg.UsesKernelPath() {
		if b.cfg.KernelRefused != nil {
			b.kernelWhy = "refused: " + b.cfg.KernelRefused.Error()
		}
		return nil
	}
	k := &kernel{engine: b.engine, own: b.cfg.Subnets, counters: metrics.Shard{Name: "kernel"}, logger: b.cfg.Logger}
	var err error
	k.path, err = kernelpath.Open(kernelpath.Config{
		Tun: b.cfg.TunName, Underlay: b.cfg.Underlay.Name, Local: b.local, Port: b.cfg.Port, SourcePorts: b.engine.SourcePorts(),
	})
	if err == nil {
		if err = b.device.SetPersistent(true); err == nil {
			// Do not count again what was carried for an earlier process.
			k.counted, err = k.path.Traffic()
		}
		if err != nil {
			err = errors.Join(err, k.path.Close(), kernelpath.Remove(b.cfg.TunName))
		}
	}
	if err != nil {
		if err := b.cfg.KernelPath.required(err); err != nil {
			return err
		}
		b.kernelWhy = "refused: " + err.Error()
		b.cfg.Logger.Warn("kernel path unavailable, user space carries all packets", logging.KeyDevice, b.cfg.TunName, logging.KeyWhy, err)
		return nil
	}
	b.kernel, b.kernelWhy = k, "granted: BPF programs attached by "+k.path.How()+"; for peers whose leases announce the kernel path"
	b.cfg.Logger.Info("kernel path open", logging.KeyDevice, b.cfg.TunName, logging.KeyInterface, b.cfg.Underlay.Name, logging.KeyWhy, b.kernelWhy)
	return nil
}

// RemoveLeft removes the kernel path that an earlier process left for the TUN device, and
// the device itself if that was left too.
func RemoveLeft(tunName string) error {
	if !kernelpath.Left(tunName) {
		return nil
	}
	err := kernelpath.Remove(tunName)
	if link, lookup := netlink.LinkByName(tunName); lookup == nil && isLeft(link) {
		if e := netlink.LinkDel(link); e != nil && !errors.Is(e, unix.ENODEV) {
			err = errors.Join(err, fmt.Errorf("delete interface %s: %w", tunName, e))
		}
	}
	return err
}

// Sweep is RemoveLeft for a process that may still have descriptors of the device open,
// for example because it has just replaced its data plane. While there are any, Sweep
// removes nothing and returns false.
func Sweep(tunName string) (done bool, err error) {
	link, err := netlink.LinkByName(tunName)
	if t, ok := link.(*netlink.Tuntap); err == nil && ok && kernelpath.Left(tunName) && t.RawFlags&unix.IFF_LOWER_UP != 0 {
		return false, nil
	}
	err = RemoveLeft(tunName)
	return err == nil, err
}

// isLeft reports whether the link is a TUN device that outlived its queues.
func isLeft(link netlink.Link) bool {
	t, ok := link.(*netlink.Tuntap)
	return ok && t.Mode == netlink.TUNTAP_MODE_TUN && !t.NonPersist && t.RawFlags&(unix.IFF_UP|unix.IFF_LOWER_UP) == unix.IFF_UP
}

// setPeers replaces the peers.
func (k *kernel) setPeers(peers []Peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.peers = peers
	k.update(k.wanted())
}

// wanted returns the peers that the kernel should have: the engine determines which of
// them need the network's port, and finds MTU limits that the kernel does not learn
// about. mu is held.
func (k *kernel) wanted() []kernelpath.Peer {
	known := make(map[netip.Addr]*fastpath.Peer)
	for _, p := range k.engine.Peers().All() {
		known[p.Endpoint.Addr()] = p
	}
	all := make([]kernelpath.Peer, 0, len(k.peers))
	for _, p := range k.peers {
		to := kernelpath.Peer{Endpoint: p.Addr, Subnets: p.Subnets, Kernel: p.Kernel}
		if f := known[p.Addr]; f != nil {
			to.MTU = f.Widest()
			if f.Fragmented() {
				to.MTU = 1 // leave it all to user space: the programs copy DF from the packet
			}
			if f.FixedPort() {
				to.SourcePort = f.Endpoint.Port()
			}
		}
		all = append(all, to)
	}
	return all
}

// update passes the peers to the kernel. User space carries what the kernel does not take,
// so nothing is lost, and look tries again. mu is held.
func (k *kernel) update(peers []kernelpath.Peer) {
	left, err := k.path.Set(k.own, peers)
	k.set, k.left, k.updated = peers, make(map[netip.Addr]bool), time.Now()
	for _, endpoint := range left {
		k.left[endpoint] = true
	}
	now := ""
	if err != nil {
		now = err.Error()
	}
	switch {
	case now != "" && now != k.fault:
		k.logger.Warn("cannot update kernel path, user space carries the rest, retrying", logging.KeyError, err)
	case now == "" && k.fault != "":
		k.logger.Info("kernel path updated again")
	}
	k.fault = now
	if full := len(left) > 0; full != k.full {
		k.full = full
		if full {
			k.logger.Warn("more peers than the kernel path has room for, user space carries the rest", logging.KeyLeases, len(peers))
		} else {
			k.logger.Info("the kernel path has room for all peers again")
		}
	}
}

// run follows the kernel's counters and what the engine learns about peers until ctx is
// done, or until a device that the path needs is gone.
func (k *kernel) run(ctx context.Context) error {
	ticks := time.NewTicker(kernelTick)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks.C:
			if err := k.look(); err != nil {
				return err
			}
		}
	}
}

func (k *kernel) look() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.path.Check(); err != nil {
		return fmt.Errorf("%w: %w", fastpath.ErrDeviceGone, err)
	}
	if traffic, err := k.path.Traffic(); err == nil { // otherwise the kernel keeps the counters for the next time
		k.count(traffic)
	}
	if peers := k.wanted(); !sentAlike(peers, k.set) || k.fault != "" && time.Since(k.updated) >= kernelRetry {
		k.update(peers)
	}
	return nil
}

// sentAlike reports whether packets are sent in the same way to two versions of the same
// peers.
func sentAlike(a, b []kernelpath.Peer) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].SourcePort != b[i].SourcePort || a[i].MTU != b[i].MTU {
			return false
		}
	}
	return true
}

// count adds what the kernel has carried since the last call to the engine's counters, so
// that each peer has one set of counters. mu is held.
func (k *kernel) count(traffic map[netip.Addr]kernelpath.Traffic) {
	for _, p := range k.engine.Peers().All() {
		now, ok := traffic[p.Endpoint.Addr()]
		if !ok {
			continue
		}
		d := now.Since(k.counted[p.Endpoint.Addr()])
		if d == (kernelpath.Traffic{}) {
			continue
		}
		p.Traffic.TXPackets.Add(d.TXPackets)
		p.Traffic.TXBytes.Add(d.TXBytes)
		p.Traffic.RXPackets.Add(d.RXPackets)
		p.Traffic.RXBytes.Add(d.RXBytes)
		tx, rx := &k.counters.TX, &k.counters.RX
		tx.Packets.Add(d.TXPackets)
		tx.Bytes.Add(d.TXBytes)
		tx.Drop(metrics.DropNoBuffer, int(d.TXDropped))
		rx.Packets.Add(d.RXPackets)
		rx.Bytes.Add(d.RXBytes)
		rx.Drop(metrics.DropNoBuffer, int(d.RXDropped))
	}
	k.counted = traffic
}

// kernelStatus adds the kernel path to the state of the data plane.
func (b *Backend) kernelStatus(d *status.Dataplane) {
	if b.cfg.KernelPath == KernelPathOff {
		return
	}
	d.Offloads = append(d.Offloads, status.Offload{
		Name: backend.KernelPathFlag, Mode: b.cfg.KernelPath.String(), InForce: b.kernel != nil, Why: b.kernelWhy,
	})
	if b.kernel == nil {
		return
	}
	b.kernel.mu.Lock()
	defer b.kernel.mu.Unlock()
	takes := make(map[netip.Addr]bool)
	for _, p := range b.kernel.set {
		takes[p.Endpoint] = p.Kernel
	}
	for i := range d.Peers {
		p := &d.Peers[i]
		switch {
		case !takes[p.PublicIP]:
			p.KernelWhy = "its lease does not announce the kernel path"
		case b.kernel.left[p.PublicIP]:
			p.KernelWhy = "there are more peers than the kernel path has room for"
		case b.kernel.fault != "":
			p.KernelWhy = "perhaps, since the kernel path was not updated: " + b.kernel.fault
		default:
			p.Kernel = true
		}
	}
}
