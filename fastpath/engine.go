package fastpath

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// Config describes what an Engine connects, and how.
type Config struct {
	Device *tun.Device     // one shard for each of its queues; the caller keeps ownership
	Pairs  int             // of threads, over which the shards are spread; 0: one per shard
	MTU    encap.TunnelMTU // of the device
	Local  netip.AddrPort  // where the sockets are bound; its family is the underlay's

	Switches // which offloads to use
	// Translated is set on a node whose public address is not one of its own: it
	// may be behind masquerade, where peers reach it only on the network's port,
	// and only once it has sent from that port.
	Translated       bool
	PartialAnnounced bool        // peers know that this node accepts packets with partial checksums, and may send them regardless of the switch
	SourceCheck      SourceCheck // which received packets are admitted

	// MTUFloor is the smallest path MTU, in bytes of the outer packet, that is accepted
	// from the kernel without being verified by a probe; 0 accepts all. It has an effect
	// only with MTUProbes. RouteMTU returns the MTU that an administrator has set for the
	// route to an address, or 0.
	MTUFloor int
	RouteMTU func(netip.Addr) int

	// Memory selects how much memory packets in transit may take. It applies to
	// inherited sockets too.
	Memory Memory

	// Taps lets captures see the packets; nil: captures are not possible.
	Taps *Taps

	// Inherited is what Descriptors of another process returned. New removes its
	// sockets from the map. It uses them if they are bound as New would bind them and
	// there is one for each queue; otherwise it closes them.
	Inherited map[string]int
	Logger    *slog.Logger
}

// Engine forwards between a TUN device and UDP sockets.
type Engine struct {
	shards     []*shard
	pairs      int           // of threads
	loops      []*loop       // of all threads
	states     []tun.Offload // as probed; Offloads adds what has changed since
	stop       int           // eventfd: readable when the engine stops, for sleeping threads
	stopping   atomic.Bool   // the same for threads that never sleep
	peers      atomic.Pointer[Peers]
	paths      *paths
	strangers  *strangers // nil if they are not filtered
	translated bool       // see Config
	memory     footprint
	profile    string       // which memory profile is in use, and why
	trains     bool         // the sockets receive GRO trains
	lanes      bool         // see lanes
	transfer   atomic.Int64 // when a flow was last found to be a bulk transfer, see lanes
	brief      bool         // a bulk transfer has brief batches if there are requests too, see loop
	bulk       atomic.Int64 // when a thread last had a large batch, see spinner
	spinSlots  atomic.Int32 // how many more threads may spin; always 0 if spinning is off

	mu     sync.Mutex
	closed bool // stop and the sockets are closed
}

// shard is one TUN queue and its sockets, one to receive and one to send, plus
// the state its two directions share.
type shard struct {
	index         int
	queue         tun.Queue
	fd            int // UDP socket that receives
	sendFD        int // fd, or a socket with a port of its own
	stop          int
	stopping      *atomic.Bool
	local         netip.Addr
	mtu           encap.TunnelMTU
	sender        sender
	segments      int  // maximum number of packets in a GSO send; 1: no GSO
	vnet          bool // the device accepts packets with partial checksums
	superTCP      bool // the device accepts TCP super-packets
	takesPartial  bool // peers may leave checksums partial
	leavesPartial bool // checksums are left partial for peers that support it
	mergeTCP      bool // received segments are merged into super-packets
	mergeUDP      bool
	probeID       uint16 // of the echo requests of a prober; 0: there is none
	floor         int    // see paths.floor
	sourceCheck   SourceCheck
	peers         *atomic.Pointer[Peers]
	counters      *metrics.Shard
	logger        *slog.Logger

	gsoRefused   atomic.Uint32 // errno with which the kernel refused GSO at run time
	mergeRefused atomic.Bool   // the device refused a super-packet at run time

	// For the TX thread's exceptions.
	tooBigs, unreachables budget
	icmp                  [tun.HeaderLen + encap.MaxICMP]byte
	scratch               [encap.MaxPacket]byte // see tx.splitAside

	tap tap // of the TX thread
}

// New opens the sockets, probes the offloads and allocates what the threads need, so that
// Run forwards at once. The device must be up, since the probe writes a super-packet to
// it. If New fails, it leaves nothing behind.
func New(cfg Config) (e *Engine, err error) {
	e = &Engine{stop: -1, pairs: cfg.Pairs, translated: cfg.Translated}
	if n := len(cfg.Device.Queues); e.pairs == 0 || e.pairs > n {
		e.pairs = n
	}
	defer func() {
		if err != nil {
			_ = e.Close()
		}
	}()
	if e.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return e, fmt.Errorf("open eventfd: %w", err)
	}
	local := netip.AddrPortFrom(cfg.Local.Addr().Unmap(), cfg.Local.Port())
	fds, sink, err := cfg.receivers(local)
	if err != nil {
		return e, err
	}
	e.peers.Store(NewPeers(nil, nil))
	tap := tap{taps: cmp.Or(cfg.Taps, new(Taps)), directions: 2 * len(fds)}
	for i, fd := range fds {
		e.shards = append(e.shards, &shard{
			index: i, queue: cfg.Device.Queues[i], fd: fd, sendFD: fd, stop: e.stop, stopping: &e.stopping,
			local: local.Addr(), mtu: cfg.MTU, segments: 1, sourceCheck: cfg.SourceCheck,
			vnet: cfg.Device.Offload(), superTCP: cfg.Device.Granted.TCP(),
			peers: &e.peers, counters: new(metrics.Shard), logger: cfg.Logger, tap: tap,
		})
	}
	e.paths = newPaths(local.Addr(), cfg.MTU, e.Peers, e.ask)
	e.paths.floor, e.paths.routeMTU = cfg.MTUFloor, cfg.RouteMTU
	err = e.probe(&cfg, sink)
	var profile Memory
	var why string
	e.memory, profile, why = cfg.Memory.footprint()
	e.profile = fmt.Sprintf("%s (%s)", profile, why)
	if e.strangers == nil && sink >= 0 {
		// The program of the earlier run must no longer select the sink.
		err = errors.Join(err, steer(fds, local), unix.Close(sink))
	}
	if err != nil {
		return e, err
	}
	e.loops = e.newLoops()
	reserveProcessors(len(e.loops))
	return e, nil
}

// prepareSockets makes the settings that would disturb another process that still uses
// inherited sockets: it sets the sizes of their buffers, and turns off the receiving of
// trains if that is not wanted.
func (e *Engine) prepareSockets() {
	for _, s := range e.shards {
		setBuffers(s.fd, e.memory.socketBuffer)
		if s.sendFD != s.fd {
			setBuffers(s.sendFD, e.memory.socketBuffer)
		}
		if !e.trains {
			_ = unix.SetsockoptInt(s.fd, unix.SOL_UDP, unix.UDP_GRO, 0)
		}
	}
	if e.strangers != nil && !e.trains {
		_ = unix.SetsockoptInt(e.strangers.sink, unix.SOL_UDP, unix.UDP_GRO, 0)
	}
}

// MemoryProfile describes which sizes are in use, small or normal, and why.
func (e *Engine) MemoryProfile() string { return e.profile }

// SetPeers installs p as the peers for all batches that begin from now on. Calls must
// not overlap.
func (e *Engine) SetPeers(p *Peers) {
	for _, peer := range p.all {
		peer.begin(e.translated)
	}
	if e.strangers != nil {
		if err := e.strangers.set(p.all); err != nil {
			e.shards[0].logger.Warn("datagrams of hosts without a lease are no longer filtered by the kernel", logging.KeyError, err)
		}
	}
	e.peers.Store(p)
}

// Peers returns the peers in force.
func (e *Engine) Peers() *Peers { return e.peers.Load() }

// ask sends an echo request to the tunnel address of a peer, from the port that packets
// to the peer are sent from. The peer's kernel answers, so that one-way traffic is not
// mistaken for a path that carries nothing back. The request is not counted; the answer
// is counted, and then ignored by this node's kernel.
func (e *Engine) ask(p *Peer) {
	from, to := p.tunnelAddrs(e.Peers().own)
	if !to.IsValid() {
		return
	}
	s := e.shards[0]
	fd := s.sendFD
	if p.FixedPort() {
		fd = s.fd
	}
	var buf [encap.MinEcho]byte
	_ = unix.Sendto(fd, encap.Echo(buf[:], from, to, len(buf)), unix.MSG_DONTWAIT, sockaddr(p.Endpoint))
}

// SourcePorts returns the UDP ports that shards send from, if each has its own.
func (e *Engine) SourcePorts() (ports []uint16) {
	for _, s := range e.shards {
		if s.sendFD == s.fd {
			continue
		}
		switch name, _ := unix.Getsockname(s.sendFD); name := name.(type) {
		case *unix.SockaddrInet4:
			ports = append(ports, uint16(name.Port))
		case *unix.SockaddrInet6:
			ports = append(ports, uint16(name.Port))
		}
	}
	return ports
}

// Counters returns the counters of each shard.
func (e *Engine) Counters() []*metrics.Shard {
	c := make([]*metrics.Shard, len(e.shards))
	for i, s := range e.shards {
		c[i] = s.counters
	}
	if e.strangers != nil {
		n := e.strangers.dropped()
		c[0].Filtered.Add(uint64(n))
		c[0].RX.Drop(metrics.DropUnknownPeer, n)
	}
	return c
}

// newLoops returns the loops of all threads: one pair, a sender and a receiver, for
// every len(e.shards)/pairs shards.
func (e *Engine) newLoops() []*loop {
	pairs := make([]struct{ tx, rx *loop }, e.pairs)
	var all []*loop
	for i := range pairs {
		p := &pairs[i]
		p.tx, p.rx = newLoop(e), newLoop(e)
		all = append(all, p.tx, p.rx)
		arena, slots := make([]byte, e.memory.txArena), make([]byte, e.memory.rxSlots*slotSize)
		lanes := new(lanes)
		if e.lanes {
			lanes = newLanes(e)
		}
		for j := i; j < len(e.shards); j += len(pairs) {
			s := e.shards[j]
			tx, rx := newTX(s, arena), newRX(s, slots)
			rx.bareTrains = !e.trains
			rx.lanes = lanes
			p.tx.add(tx, s.queue.FD(), tx.c)
			p.rx.add(rx, s.fd, rx.c)
		}
	}
	return all
}

// reserveProcessors raises GOMAXPROCS, for the rest of the life of the process, to make
// room for n threads that are always in a system call that Go's scheduler does not see,
// unless the environment sets GOMAXPROCS explicitly. It stops the whole process briefly.
func reserveProcessors(n int) {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), n+2))
	}
}

// Run forwards packets until ctx is done or the device is gone. It may be
// called once. It returns the error of the first thread that failed, which caused
// the others to end.
func (e *Engine) Run(ctx context.Context) error {
	var (
		wg     sync.WaitGroup
		failed sync.Once
		first  error
	)
	e.prepareSockets()
	for _, l := range e.loops {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if err := l.run(); err != nil {
				failed.Do(func() { first = err })
				e.wakeAll()
			}
		})
	}
	defer context.AfterFunc(ctx, e.wakeAll)()
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { e.paths.run(watching) })
	if e.strangers != nil {
		watch.Go(func() { e.strangers.run(watching) })
	}
	wg.Wait()
	stop()
	watch.Wait()
	return first
}

// wakeAll ends all threads. Nothing reads the eventfd, so it stays readable. wakeAll
// may run after Close, since Run does not wait for the function it registers with its
// context.
func (e *Engine) wakeAll() {
	e.stopping.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		_, _ = unix.Write(e.stop, []byte{1, 0, 0, 0, 0, 0, 0, 1})
	}
}

// Close closes the sockets. Run must have returned. Further calls do nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var errs []error
	if e.strangers != nil {
		errs = append(errs, e.strangers.close())
	}
	for _, s := range e.shards {
		errs = append(errs, unix.Close(s.fd))
		if s.sendFD != s.fd {
			errs = append(errs, unix.Close(s.sendFD))
		}
	}
	if e.stop >= 0 {
		errs = append(errs, unix.Close(e.stop))
	}
	if e.paths != nil {
		e.paths.close()
	}
	return errors.Join(errs...)
}
