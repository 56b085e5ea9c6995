package fastpath

import (
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
	"github.com/twillnet/twill/internal/offload"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// Config says what an Engine connects and how.
type Config struct {
	Device *tun.Device     // one shard for each of its queues; it stays the caller's
	MTU    encap.TunnelMTU // of the device
	Local  netip.AddrPort  // where the sockets are bound; its family is that of the underlay

	UDPGSO, UDPGRO, TunGRO offload.Switch
	BusyPoll               offload.Switch // look for packets for a short while before sleeping
	SourceCheck            SourceCheck
	Logger                 *slog.Logger
}

// Engine forwards between a TUN device and UDP sockets.
type Engine struct {
	shards    []*shard
	states    []offload.State // as probed; Offloads adds what happened since
	stop      int             // eventfd: readable when the engine stops, for threads that sleep
	stopping  atomic.Bool     // the same for threads that always find work
	peers     atomic.Pointer[Peers]
	spinSlots atomic.Int32 // how many more threads may spin
	closed    sync.Once
}

// shard is one TUN queue and one socket, with what its two directions share.
type shard struct {
	index       int
	queue       tun.Queue
	fd          int // UDP socket
	stop        int
	stopping    *atomic.Bool
	local       netip.Addr
	mtu         encap.TunnelMTU
	sender      sender
	segments    int  // packets a GSO send may have; 1: no GSO
	superTCP    bool // the device takes TCP super-packets
	mergeTCP    bool // packets received are made into super-packets
	mergeUDP    bool
	sourceCheck SourceCheck
	peers       *atomic.Pointer[Peers]
	counters    *metrics.Shard
	logger      *slog.Logger

	bulk         atomic.Int64  // when there was last a large batch, see spinner
	spinSlots    *atomic.Int32 // of the engine; nil: no spinning
	gsoRefused   atomic.Uint32 // errno with which the kernel refused GSO at run time
	mergeRefused atomic.Bool   // the device refused a super-packet at run time

	// For the TX thread's exceptions.
	icmpLimit limiter
	icmp      [tun.HeaderLen + encap.MaxICMP]byte
	scratch   [encap.MaxPacket]byte
}

// New opens the sockets and probes the offloads. The device must be up, since
// a super-packet is written to it as a probe. On failure nothing is left.
func New(cfg Config) (e *Engine, err error) {
	e = &Engine{stop: -1}
	defer func() {
		if err != nil {
			_ = e.Close()
		}
	}()
	if e.stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return e, fmt.Errorf("open eventfd: %w", err)
	}
	local := netip.AddrPortFrom(cfg.Local.Addr().Unmap(), cfg.Local.Port())
	fds, err := openSockets(local, len(cfg.Device.Queues))
	if err != nil {
		return e, err
	}
	e.peers.Store(NewPeers(nil, nil))
	for i, fd := range fds {
		e.shards = append(e.shards, &shard{
			index: i, queue: cfg.Device.Queues[i], fd: fd, stop: e.stop, stopping: &e.stopping,
			local: local.Addr(), mtu: cfg.MTU, segments: 1, sourceCheck: cfg.SourceCheck,
			superTCP: cfg.Device.Granted.TCP(),
			peers:    &e.peers, counters: new(metrics.Shard), logger: cfg.Logger,
		})
	}
	return e, e.probe(&cfg)
}

// probe finds out which offloads the kernel has and sets the shards up.
func (e *Engine) probe(cfg *Config) error {
	ipv6 := e.shards[0].local.Is6()
	segments := 1
	gso, err := offload.Resolve("udp-gso", cfg.UDPGSO, func() (string, error) {
		n, err := probeGSO(ipv6)
		if err != nil {
			return "", err
		}
		segments = n
		return fmt.Sprintf("granted: UDP_SEGMENT, %d segments a send", n), nil
	})
	if err != nil {
		return err
	}
	gro, err := offload.Resolve("udp-gro", cfg.UDPGRO, func() (string, error) {
		for _, s := range e.shards {
			if err := enableGRO(s.fd); err != nil {
				return "", err
			}
		}
		return "granted: UDP_GRO", nil
	})
	if err != nil {
		return err
	}
	merge, err := offload.Resolve("tun-gro", cfg.TunGRO, func() (string, error) {
		return probeMerge(cfg.Device)
	})
	if err != nil {
		return err
	}
	spin, err := offload.Resolve("busy-poll", cfg.BusyPoll, probeSpin)
	if err != nil {
		return err
	}
	e.spinSlots.Store(int32(spinThreads()))
	e.states = []offload.State{cfg.Device.State, merge, gso, gro, spin}
	for _, s := range e.shards {
		s.segments = segments
		if spin.InForce {
			s.spinSlots = &e.spinSlots
		}
		s.mergeTCP = merge.InForce && cfg.Device.Granted.TCP()
		s.mergeUDP = merge.InForce && mergesUDP(cfg.Device)
		if gso.InForce {
			s.sender = newMmsgSender(s.fd, ipv6)
			continue
		}
		b, err := newBatchSender(s.fd, s.local)
		if err != nil {
			return fmt.Errorf("open batch connection: %w", err)
		}
		s.sender = b
	}
	return nil
}

// SetPeers makes p the peers of all batches that begin from now on.
func (e *Engine) SetPeers(p *Peers) { e.peers.Store(p) }

// Peers returns the peers in force.
func (e *Engine) Peers() *Peers { return e.peers.Load() }

// Counters returns the counters of each shard.
func (e *Engine) Counters() []*metrics.Shard {
	c := make([]*metrics.Shard, len(e.shards))
	for i, s := range e.shards {
		c[i] = s.counters
	}
	return c
}

// Offloads returns the state of each offload as it is now.
func (e *Engine) Offloads() []offload.State {
	states := append([]offload.State(nil), e.states...)
	for _, s := range e.shards {
		for i := range states {
			st := &states[i]
			switch errno := unix.Errno(s.gsoRefused.Load()); {
			case st.Name == "udp-gso" && errno != 0:
				st.InForce = false
				st.Why = fmt.Sprintf("refused at run time: sendmsg on shard %d of %d: %v", s.index+1, len(e.shards), errno)
			case st.Name == "tun-gro" && s.mergeRefused.Load():
				st.InForce = false
				st.Why = fmt.Sprintf("refused at run time: write on shard %d of %d: %v", s.index+1, len(e.shards), unix.EINVAL)
			}
		}
	}
	return states
}

// loops returns the loops of the shard, one for each of its threads.
func (s *shard) loops() []*loop {
	tx, rx := newTX(s), newRX(s)
	l := []*loop{
		{directions: []direction{tx}, wake: newWaiter(s.stop, unix.POLLIN, s.queue.FD()), c: tx.c},
		{directions: []direction{rx}, wake: newWaiter(s.stop, unix.POLLIN, s.fd), c: rx.c},
	}
	for i := range l {
		l[i].stopping = s.stopping
		if s.spinSlots != nil {
			l[i].spin = spinner{bulk: &s.bulk, slots: s.spinSlots}
		}
	}
	return l
}

// reserveProcessors makes room in Go's scheduler for n threads that are always
// in a system call it does not see, and for the rest of the process, unless the
// environment says how many processors there are.
func reserveProcessors(n int) {
	if _, set := os.LookupEnv("GOMAXPROCS"); !set {
		runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), n+2))
	}
}

// Run forwards packets until ctx is done or the device is gone. It may be
// called once. Its error is that of the thread which failed first; what ails
// one ails the others.
func (e *Engine) Run(ctx context.Context) error {
	var (
		wg     sync.WaitGroup
		failed sync.Once
		first  error
	)
	reserveProcessors(2 * len(e.shards))
	for _, s := range e.shards {
		for _, l := range s.loops() {
			wg.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				if err := l.run(); err != nil {
					failed.Do(func() { first = err })
					e.wakeAll()
				}
			})
		}
	}
	defer context.AfterFunc(ctx, e.wakeAll)()
	wg.Wait()
	return first
}

// wakeAll ends all threads. Nobody reads the eventfd, so it stays readable.
func (e *Engine) wakeAll() {
	_, _ = unix.Write(e.stop, []byte{1, 0, 0, 0, 0, 0, 0, 1})
	// Last, since Close may follow at once.
	e.stopping.Store(true)
}

// Close closes the sockets. Run must have returned.
func (e *Engine) Close() error {
	var errs []error
	e.closed.Do(func() {
		for _, s := range e.shards {
			if b, ok := s.sender.(*batchSender); ok {
				errs = append(errs, b.close())
			}
			errs = append(errs, unix.Close(s.fd))
		}
		if e.stop >= 0 {
			errs = append(errs, unix.Close(e.stop))
		}
	})
	return errors.Join(errs...)
}
