// Package udp is flannel's udp backend: inner packets go through a TUN device
// and cross the underlay as the payload of UDP datagrams, in user space.
//
// It puts together the device (tun), the engine (fastpath) and the peers. Address,
// MTU and routes of the device are values of package keep. On the wire and on the
// host it looks as stock flannel does.
package udp

import (
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
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/ports"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// maxPairs bounds the number of pairs of threads that is chosen by itself. Each
// takes about 1 MiB.
const maxPairs = 4

// queuesPerPair is how many TUN queues and sockets a pair of threads reads in
// turn, so that a flow waits behind a quarter of the others only.
const queuesPerPair = 4

// Config says what a Backend connects and how.
type Config struct {
	Options
	Underlay underlay.Interface
	Subnets  []netip.Prefix // of this node
	TunName  string         // of the device, "flannel0"
	Pairs    int            // of threads; 0: chosen by the number of CPUs
	// PartialAnnounced says that the lease of this node announces
	// PartialChecksums.
	PartialAnnounced bool

	fastpath.Switches
	SourceCheck fastpath.SourceCheck
	// Inherited are what Descriptors of another process returned. Open takes out of
	// the map what it uses, and closes what it cannot.
	Inherited map[string]int

	Keeper *keep.Keeper // sets the device up, with its MTU and addresses
	Logger *slog.Logger
}

// Backend is a running udp backend.
type Backend struct {
	cfg    Config
	local  netip.Addr // the address of this node on the underlay
	mtu    encap.TunnelMTU
	device *tun.Device
	engine *fastpath.Engine
}

// Open makes the device, has the keeper set it up, and opens the sockets, in the
// network namespace of the calling thread. Nothing is forwarded before Run. On
// failure nothing is left.
func Open(cfg Config) (_ *Backend, err error) {
	b := &Backend{cfg: cfg}
	if b.local, err = LocalAddr(cfg.Underlay); err != nil {
		return nil, err
	}
	if b.mtu, err = cfg.TunnelMTU(cfg.Underlay); err != nil {
		return nil, err
	}
	if cfg.PartialChecksums == tun.Off && cfg.PartialAnnounced {
		return nil, errors.New("--partial-checksums=off, but the lease of this node announces PartialChecksums: take it out of the lease's BackendData")
	}
	if len(cfg.Inherited) == 0 {
		if err := checkFree(cfg.TunName); err != nil {
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
	b.device, err = tun.Open(tun.Config{Name: cfg.TunName, Queues: queues, Offload: cfg.TunOffload, Inherited: cfg.Inherited, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = b.device.Close()
		}
	}()
	// Probes of the device write to it, so it is up before.
	if err = cfg.Keeper.Ensure(b.Link()); err != nil {
		return nil, err
	}
	b.engine, err = fastpath.New(fastpath.Config{
		Device: b.device, Pairs: pairs, MTU: b.mtu, Local: netip.AddrPortFrom(b.local, cfg.Port),
		Translated: translated(cfg.Underlay, b.local),
		Switches:   cfg.Switches, PartialAnnounced: cfg.PartialAnnounced,
		SourceCheck: cfg.SourceCheck, Inherited: cfg.Inherited, Logger: cfg.Logger,
	})
	if errors.Is(err, unix.EADDRINUSE) && ports.Device(int(cfg.Port)) != nil {
		err = fmt.Errorf("%w; %s", err, ports.Holder(int(cfg.Port)))
	}
	if err != nil {
		return nil, err
	}
	b.SetPeers(nil)
	return b, nil
}

// translated reports whether peers see another address than local, which this node
// sends from.
func translated(u underlay.Interface, local netip.Addr) bool {
	public := u.PublicIP
	if local.Is6() {
		public = u.PublicIPv6
	}
	return public.IsValid() && public != local
}

// LocalAddr chooses the family of the underlay: IPv4 where the interface has
// it, as stock flannel, else IPv6.
func LocalAddr(u underlay.Interface) (netip.Addr, error) {
	switch {
	case u.IPv4.IsValid():
		return u.IPv4, nil
	case u.IPv6.IsValid():
		return u.IPv6, nil
	}
	return netip.Addr{}, fmt.Errorf("interface %s has no address for the udp backend: give it one, or choose another with --iface", u.Name)
}

// TunnelMTU returns the largest packet that a datagram over the interface u
// carries whole.
func (o Options) TunnelMTU(u underlay.Interface) (encap.TunnelMTU, error) {
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

// Link returns the device that the kernel is to have, with the first address of
// each subnet.
func (b *Backend) Link() keep.Link {
	l := keep.Link{Name: b.cfg.TunName, MTU: int(b.mtu)}
	for _, s := range b.cfg.Subnets {
		l.Addrs = append(l.Addrs, s.Masked().Addr())
	}
	return l
}

// Run forwards until ctx is done (the error is nil then) or something fatal
// happens, such as the device being deleted. It may be called once.
func (b *Backend) Run(ctx context.Context) error { return b.engine.Run(ctx) }

// Close removes what Open made. Run must have returned.
func (b *Backend) Close() error { return errors.Join(b.engine.Close(), b.device.Close()) }

// MTU returns the MTU of the device in bytes.
func (b *Backend) MTU() int { return int(b.mtu) }

// Descriptors returns those of the device and of the sockets, by name, for
// [Config.Inherited] of another process. They stay the backend's.
func (b *Backend) Descriptors() map[string]int {
	fds := b.device.Descriptors()
	if fds == nil {
		return nil // the plain device ends with its process, and so may its sockets
	}
	maps.Copy(fds, b.engine.Descriptors())
	return fds
}

// Counters returns the counters of each shard.
func (b *Backend) Counters() []*metrics.Shard { return b.engine.Counters() }

// SetPeers replaces the peers. It must not run at the same time as itself. Peers
// that have not changed are not disturbed; packets under way see the old or the
// new set, never a mixture.
func (b *Backend) SetPeers(peers []Peer) {
	b.engine.SetPeers(snapshot(peers, b.cfg.Subnets, b.cfg.Port, b.engine.Peers()))
}

// Status reports how the data plane runs.
func (b *Backend) Status() status.Dataplane {
	kind := status.KindPlain
	if b.device.Offload() {
		kind = status.KindOffload
	}
	d := status.Dataplane{
		Devices:     []status.Device{{Name: b.device.Name, Kind: kind, Why: b.device.State.Why, MTU: int(b.mtu)}},
		Port:        b.cfg.Port,
		SourceCheck: b.cfg.SourceCheck.String(),
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
			Notes: p.PathNotes(separated),
		})
	}
	return d
}

// checkFree refuses a device name that an interface has already. The device is
// to be ours alone: the kernel would let us open further queues of one that
// another process serves, and a persistent one would outlive us with its
// address and routes. Of two processes that look at once, opening refuses one.
func checkFree(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	kind, command := link.Type(), "ip link delete "+name
	if t, ok := link.(*netlink.Tuntap); ok {
		if kind = "TAP"; t.Mode == netlink.TUNTAP_MODE_TUN {
			kind, command = "persistent TUN", "twilld --cleanup, or "+command
		}
		if t.NonPersist { // or else it would be gone
			return fmt.Errorf("interface %s is open in another process: stop the flanneld or twilld that runs on this host, or choose another name with --tun-name", name)
		}
	}
	return fmt.Errorf("interface %s exists and is not twilld's (%s): choose another name with --tun-name, or delete it (%s)",
		name, kind, command)
}
