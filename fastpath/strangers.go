package fastpath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// strangers keeps datagrams of hosts without a lease out of the queues of the receiving
// sockets, so that a flood of them does not take room or CPU time from datagrams of peers.
//
// The sockets of an engine are bound to one address, and a BPF program chooses among
// them (see steer). One more socket, the sink, is bound to the same address and accepts
// nothing. The program sends everything to it that does not come from a peer's address.
// This requires no privilege, and the kernel counts what the sink drops separately from
// what a full queue drops.
//
// The addresses are part of the program (see admitting), which is attached again when
// they change.
type strangers struct {
	local   netip.AddrPort
	group   int // one of the receiving sockets
	sockets int // number of receiving sockets; the sink comes after them
	sink    int
	seed    [4]uint32 // see admitting

	mu      sync.Mutex // guards the fields below
	peers   []netip.Addr
	refused error  // the reason for which the last program was not attached
	blocks  bool   // the program in force admits some addresses that belong to no peer
	seen    uint32 // what the kernel has counted on the sink, modulo 2³²
	closed  bool
}

// keysAtMost is the number of keys in the first program that is tried. A kernel may
// accept fewer: net.core.optmem_max, 20 KiB before Linux 6.8, bounds the size of a
// program.
const keysAtMost = 1024

// keysAtLeast is the number of keys below which a program is not tried.
const keysAtLeast = 64

// renewInterval is the longest time for which another process's program stays in force.
const renewInterval = 10 * time.Second

// filter filters out strangers if that is possible. inherited is the sink of an earlier
// run, which the engine then owns, or -1. gro is set if the sockets receive trains.
func (e *Engine) filter(cfg *Config, inherited int, gro bool) (granted string, err error) {
	if cfg.SourceCheck != CheckStrict {
		return "", fmt.Errorf("--source-check=%s admits every address", cfg.SourceCheck)
	}
	fds := make([]int, len(e.shards))
	for i, s := range e.shards {
		fds[i] = s.fd
	}
	s, err := openStrangers(fds, netip.AddrPortFrom(e.shards[0].local, cfg.Local.Port()), inherited, gro)
	if err != nil {
		return "", err
	}
	e.strangers = s
	return "granted", nil
}

// openStrangers adds a sink to the sockets fds, which are all those bound to
// local. inherited is the sink of an earlier run, which stays open if there is an
// error, or -1. Until set is called, every address is admitted.
func openStrangers(fds []int, local netip.AddrPort, inherited int, gro bool) (*strangers, error) {
	s := &strangers{local: local, group: fds[0], sockets: len(fds), sink: inherited}
	for i := range s.seed {
		s.seed[i] = newSeed()
	}
	// This precedes opening the sink, since the kernel's hash would select it too.
	if err := steer(fds, local); err != nil {
		return nil, err
	}
	if s.sink < 0 {
		var err error
		if s.sink, err = openSocket(local, true); err != nil {
			return nil, err
		}
	}
	err := attach(s.sink, unix.SO_ATTACH_FILTER, []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}})
	if err == nil && gro {
		// The kernel looks for this option on any of the sockets, by a hash, before
		// the program runs (udp_gro_receive). Without it here some flows of peers
		// would arrive one datagram at a time.
		err = enableGRO(s.sink)
	}
	if err == nil {
		s.seen, err = socketDrops(s.sink)
	}
	if err != nil && inherited < 0 {
		_ = unix.Close(s.sink)
	}
	return s, err
}

// set admits the addresses of peers and no others; if there are no peers, it admits all.
// The error is the reason why every address is admitted.
func (s *strangers) set(peers []*Peer) error {
	addrs := make([]netip.Addr, 0, len(peers))
	for _, p := range peers {
		addrs = append(addrs, p.Endpoint.Addr())
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || slices.Equal(addrs, s.peers) {
		return s.refused
	}
	s.peers = addrs
	s.attach()
	return s.refused
}

// run renews the program until ctx is done.
func (s *strangers) run(ctx context.Context) { every(ctx, renewInterval, s.renew) }

// renew attaches the program again. Another process that has copies of the sockets,
// and failed to take over from this one, may have replaced it.
func (s *strangers) renew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && s.refused == nil {
		s.attach()
	}
}

// attach attaches the program for s.peers, with as many keys as the kernel accepts.
func (s *strangers) attach() {
	tail := steering(s.sockets, s.local)
	if len(s.peers) == 0 {
		s.refused = attach(s.group, unix.SO_ATTACH_REUSEPORT_CBPF, tail)
		return
	}
	for most := keysAtMost; most >= keysAtLeast; most /= 2 {
		program, exact := admitting(s.peers, s.seed, most, uint32(s.sockets))
		s.blocks = !exact
		s.refused = attach(s.group, unix.SO_ATTACH_REUSEPORT_CBPF, append(program, tail...))
		if !errors.Is(s.refused, unix.ENOMEM) && !errors.Is(s.refused, unix.EINVAL) {
			break
		}
	}
	if s.refused != nil {
		_ = attach(s.group, unix.SO_ATTACH_REUSEPORT_CBPF, tail)
	}
}

// dropped returns how many messages the sink has dropped since the last call. A GRO
// train counts as one.
func (s *strangers) dropped() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0
	}
	n, err := socketDrops(s.sink)
	if err != nil {
		return 0
	}
	more := n - s.seen
	s.seen = n
	return int(more)
}

// state describes the program in force, or returns why none is.
func (s *strangers) state() (granted string, refused error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	granted = fmt.Sprintf("granted: addresses of %d peers", len(s.peers))
	if s.blocks {
		granted += ", in blocks"
	}
	return granted, s.refused
}

func (s *strangers) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return unix.Close(s.sink)
}

// socketDrops returns how many messages the kernel has dropped on a socket since it was
// opened, modulo 2³² (SK_MEMINFO_DROPS of SO_MEMINFO, Linux 4.12).
func socketDrops(fd int) (uint32, error) {
	const drops = 8 // include/uapi/linux/sock_diag.h
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 || size < uint32(unsafe.Sizeof(info)) {
		return 0, fmt.Errorf("get SO_MEMINFO of the UDP socket: %w", errno)
	}
	return info[drops], nil
}
