// Package udp is flannel's udp backend: inner packets go through a TUN device
// and cross the underlay as the payload of UDP datagrams, in user space.
//
// It combines the device (tun), the engine (fastpath) and the peers. The
// address, MTU and routes of the device are values that package keep applies. On the
// wire and on the host, the backend looks the same as stock flannel's.
package udp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp/kernelpath"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/ports"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// maxPairs bounds the default number of pairs of threads. Each pair takes about
// 1 MiB.
const maxPairs = 4

// queuesPerPair is the number of TUN queues and sockets that a pair of threads
// reads in turn, so that a flow waits behind only a quarter of the others.
const queuesPerPair = 4

// Config describes what a Backend connects and how.
type Config struct {
	backend.UDPOptions
	Underlay underlay.Interface
	Subnets  []netip.Prefix // the subnets of this node
	TunName  string         // name of the device, "flannel0"
	Pairs    int            // pairs of threads; 0: chosen from the number of CPUs
	// PartialAnnounced reports whether the lease of this node announces
	// PartialChecksums.
	PartialAnnounced bool
	KernelPath       KernelPath
	KernelRefused    error // from KernelPath.Probe: why the path cannot be used

	fastpath.Switches
	SourceCheck fastpath.SourceCheck
	Memory      fastpath.Memory
	MTUFloor    int            // see fastpath.Config
	Taps        *fastpath.Taps // see fastpath.Config
	// Inherited is the result of Descriptors in another process. Open removes
	// the descriptors that it uses from the map, and closes those that it
	// cannot use.
	Inherited map[string]int

	Keeper *keep.Keeper // configures the device, its MTU and its addresses
	Logger *slog.Logger
}

// Backend is a running udp backend.
type Backend struct {
	cfg    Config
	local  netip.Addr // the address of this node on the underlay
	mtu    encap.TunnelMTU
	device *tun.Device
	engine *fastpath.Engine

	kernel    *kernel // nil: user space carries everything
	kernelWhy string  // the reason, in words
}

// Open creates the device, has cfg.Keeper configure it, and opens the sockets,
// in the network namespace of the calling thread. Nothing is forwarded in user
// space before Run. If Open fails, it leaves nothing behind, except a kernel path
// that an earlier process left, which still carries packets.
func Open(cfg Config) (_ *Backend, err error) {
	b := &Backend{cfg: cfg}
	if b.local, err = LocalAddr(cfg.Underlay); err != nil {
		return nil, err
	}
	if b.mtu, err = TunnelMTU(cfg.UDPOptions, cfg.Underlay); err != nil {
		return nil, err
	}
	left := false
	if len(cfg.Inherited) == 0 {
		if left, err = checkFree(cfg.TunName); err != nil {
			return nil, err
		}
	}
	pairs := cfg.Pairs
	if pairs == 0 {
		pairs = min(max(1, runtime.NumCPU()/2), maxPairs)
	}
	queues := pairs
	if cfg.SourcePorts != tun.Off {
		queues *= queuesPerPair
	}
	device := tun.Config{Name: cfg.TunName, Queues: queues, Offload: cfg.TunOffload, Inherited: cfg.Inherited, Left: left, Logger: cfg.Logger}
	if b.device, err = tun.Open(device); err != nil && left { // it has another kind of queues
		if err = RemoveLeft(cfg.TunName); err == nil {
			device.Left = false
			b.device, err = tun.Open(device)
		}
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = b.device.Close()
		}
	}()
	// The offload probes write to the device, so it has to be up first.
	if err = cfg.Keeper.Ensure(b.Link()); err != nil {
		return nil, err
	}
	b.engine, err = fastpath.New(fastpath.Config{
		Device: b.device, Pairs: pairs, MTU: b.mtu, Local: netip.AddrPortFrom(b.local, cfg.Port),
		Translated: translated(cfg.Underlay, b.local),
		Switches:   cfg.Switches, PartialAnnounced: cfg.PartialAnnounced,
		SourceCheck: cfg.SourceCheck, MTUFloor: cfg.MTUFloor, RouteMTU: routeMTU, Memory: cfg.Memory, Taps: cfg.Taps, Inherited: cfg.Inherited, Logger: cfg.Logger,
	})
	if errors.Is(err, unix.EADDRINUSE) && ports.Device(int(cfg.Port)) != nil {
		err = fmt.Errorf("%w; %s", err, ports.Holder(int(cfg.Port)))
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = b.engine.Close()
		}
	}()
	b.engine.SetPeers(fastpath.NewPeers(cfg.Subnets, nil))
	if err = b.openKernel(); err != nil {
		return nil, err
	}
	if b.kernel == nil && b.device.Offload() {
		err = b.device.SetPersistent(false) // it may be inherited
	}
	return b, err
}

// translated reports whether this node sends from a local address that differs
// from the one its peers see.
func translated(u underlay.Interface, local netip.Addr) bool {
	public := u.PublicIP
	if local.Is6() {
		public = u.PublicIPv6
	}
	return public.IsValid() && public != local
}

// routeMTU returns the MTU that the routing table specifies for a, disregarding path MTUs
// that the kernel has learnt; 0: none, or unknown.
func routeMTU(a netip.Addr) int {
	routes, err := netlink.RouteGetWithOptions(a.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
	if err != nil || len(routes) == 0 {
		return 0
	}
	return routes[0].MTU
}

// LocalAddr returns the address of the udp socket: IPv4 if the interface has
// it, as in stock flannel, otherwise IPv6.
func LocalAddr(u underlay.Interface) (netip.Addr, error) {
	switch {
	case u.IPv4.IsValid():
		return u.IPv4, nil
	case u.IPv6.IsValid():
		return u.IPv6, nil
	}
	return netip.Addr{}, fmt.Errorf("interface %s has no address for the udp backend: add one, or choose another interface with --iface", u.Name)
}

// TunnelMTU returns the size of the largest packet that fits, unfragmented,
// into a datagram over the interface u.
func TunnelMTU(o backend.UDPOptions, u underlay.Interface) (encap.TunnelMTU, error) {
	local, err := LocalAddr(u)
	if err != nil {
		return 0, err
	}
	mtu := u.MTU
	if o.MTU > 0 {
		mtu = min(o.MTU, mtu)
	}
	return encap.UnderlayMTU(mtu).Tunnel(local), nil
}

// Link returns the device as the kernel should have it, with the first address
// of each subnet.
func (b *Backend) Link() keep.Link {
	l := keep.Link{Name: b.cfg.TunName, Port: int(b.cfg.Port), MTU: int(b.mtu), QueueLen: b.cfg.Memory.QueueLen()}
	for _, s := range b.cfg.Subnets {
		l.Addrs = append(l.Addrs, s.Masked().Addr())
	}
	return l
}

// Run forwards until ctx is done, in which case the error is nil, or until a
// fatal error such as the deletion of the device. It may be called once.
func (b *Backend) Run(ctx context.Context) error {
	if b.kernel == nil {
		return b.engine.Run(ctx)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer stop()
		ended <- b.kernel.run(ctx)
	}()
	err := b.engine.Run(ctx)
	stop()
	return cmp.Or(err, <-ended)
}

// Close removes what Open created, except the kernel path with its TUN device: they
// continue to carry packets, and the next Open takes them over. Run must have returned.
func (b *Backend) Close() error {
	errs := []error{b.engine.Close(), b.device.Close()}
	if b.kernel != nil {
		errs = append(errs, b.kernel.path.Close())
	}
	return errors.Join(errs...)
}

// MTU returns the MTU of the device in bytes.
func (b *Backend) MTU() int { return int(b.mtu) }

// Descriptors returns, by name, the file descriptors of the device and of the
// sockets, for [Config.Inherited] in another process. The backend still owns
// them.
func (b *Backend) Descriptors() map[string]int {
	fds := b.device.Descriptors()
	if fds == nil {
		return nil // a device without offload cannot be handed over, so neither are the sockets
	}
	maps.Copy(fds, b.engine.Descriptors())
	return fds
}

// Counters returns the counters of each shard, and of the kernel path if there is one.
func (b *Backend) Counters() []*metrics.Shard {
	all := b.engine.Counters()
	if b.kernel != nil {
		all = append(all, &b.kernel.counters)
	}
	return all
}

// SetPeers replaces the peers. It must not be called concurrently with itself.
// Peers that have not changed are not disturbed. A packet in flight sees either
// the old or the new set, never a mixture.
func (b *Backend) SetPeers(peers []Peer) {
	b.engine.SetPeers(snapshot(peers, b.cfg.Subnets, b.cfg.Port, b.engine.Peers()))
	if b.kernel != nil {
		b.kernel.setPeers(peers)
	}
}

// Status reports the state of the data plane.
func (b *Backend) Status() status.Dataplane {
	kind := status.KindPlain
	if b.device.Offload() {
		kind = status.KindOffload
	}
	d := status.Dataplane{
		Devices:     []status.Device{{Name: b.device.Name, Kind: kind, Why: b.device.State.Why, MTU: int(b.mtu)}},
		Port:        b.cfg.Port,
		SourceCheck: b.cfg.SourceCheck.String(),
		Memory:      b.engine.MemoryProfile(),
	}
	for _, s := range b.engine.Offloads() {
		d.Offloads = append(d.Offloads, status.Offload{Name: s.Name, Mode: s.Mode.String(), InForce: s.InForce, Why: s.Why})
	}
	separated := slices.ContainsFunc(d.Offloads, func(o status.Offload) bool { return o.Name == "source-ports" && o.InForce })
	for _, p := range b.engine.Peers().All() {
		d.Peers = append(d.Peers, status.Peer{
			Subnets: p.Subnets, PublicIP: p.Endpoint.Addr(),
			TXPackets: p.Traffic.TXPackets.Load(), TXBytes: p.Traffic.TXBytes.Load(),
			RXPackets: p.Traffic.RXPackets.Load(), RXBytes: p.Traffic.RXBytes.Load(),
			MTU:   p.Widest(),
			Notes: p.PathNotes(separated),
		})
	}
	b.kernelStatus(&d)
	return d
}

// checkFree rejects the name of an existing interface, unless it is the device of a
// kernel path that an earlier process left. The device must belong to this process
// alone: the kernel would let it open further queues of a device that another process
// serves, and a persistent device would outlive this process with its address and
// routes. If two processes check at the same time, opening the device fails in one of
// them.
func checkFree(name string) (left bool, err error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up interface %s: %w", name, err)
	}
	if isLeft(link) && kernelpath.Left(name) {
		return true, nil
	}
	kind, command := link.Type(), "ip link delete "+name
	if t, ok := link.(*netlink.Tuntap); ok {
		if kind = "TAP"; t.Mode == netlink.TUNTAP_MODE_TUN {
			kind, command = "persistent TUN", "twilld --cleanup, or "+command
		}
		if t.NonPersist { // otherwise the device would be gone
			return false, fmt.Errorf("interface %s is open in another process: stop the flanneld or twilld that runs on this host, or choose another name with --tun-name", name)
		}
	}
	return false, fmt.Errorf("interface %s exists and is not twilld's (%s): choose another name with --tun-name, or delete it (%s)",
		name, kind, command)
}
