package fastpath

import (
	"context"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
)

const (
	// pathsTick is the interval at which the path to each peer is checked.
	pathsTick = time.Second
	// pathsAsked is the maximum number of peers per tick for which the kernel is
	// queried for the path MTU, at two system calls each.
	pathsAsked = 64

	// A peer is silent while packets go to it and none come back, counted in
	// ticks. After silentOwn it is tried from the network's port for
	// silentFixed, then for silentAgain from the shards' own ports, and so on.
	// One-way traffic does not count as silence: see Engine.ask. The own ports get
	// the larger share, so that a peer that was merely down is usually found on
	// them. Two nodes that both have to send from the network's port do so within
	// 30 s of each other, which is how long Linux tracks an unanswered packet
	// (net.netfilter.nf_conntrack_udp_timeout).
	silentOwn   = 3
	silentFixed = 4
	silentAgain = 12
	// firstRetry is the number of ticks for which a peer that was found from the
	// network's port is served from there before the own ports are tried once
	// more, for silentOwn. Each failed retry doubles the interval to the next one.
	firstRetry = 300

	// defaultMinPMTU is the default of net.ipv4.route.min_pmtu.
	defaultMinPMTU = 552
)

// paths monitors the paths to the peers of an engine, apart from the threads that
// forward. It belongs to one goroutine.
type paths struct {
	peers     func() *Peers
	local     netip.Addr
	separated bool        // the shards have source ports of their own
	ask       func(*Peer) // sends the peer a packet that it answers
	probes    *prober     // nil: no probes
	mtu       encap.TunnelMTU
	fd        int // to query the kernel for path MTUs; -1: none
	minPMTU   int // net.ipv4.route.min_pmtu; 0: irrelevant
	next      int // index of the peer to query first

	// floor is the path MTU, in bytes of the outer packet, below which the kernel's is
	// not accepted without a probe; 0: it is always accepted. routeMTU returns the MTU
	// that an administrator has set for the route to an address, or 0.
	floor    int
	routeMTU func(netip.Addr) int
}

// watched is the state that paths keeps for a peer.
type watched struct {
	tx, rx uint64 // packets so far, including the probes in progress
	silent int    // ticks
	served int    // ticks with answers since the port was chosen
	retry  int    // ticks to serve from the network's port; 0: firstRetry
	probing

	// doubts is the number of ticks for which the kernel's path MTU has been doubted.
	// concluded is set when a prober has reached a conclusion about the path.
	doubts    int
	concluded bool
}

// newPaths returns a paths for an engine bound to local, in the network namespace of
// the calling thread.
func newPaths(local netip.Addr, mtu encap.TunnelMTU, peers func() *Peers, ask func(*Peer)) *paths {
	p := &paths{peers: peers, local: local, mtu: mtu, ask: ask, fd: -1, minPMTU: defaultMinPMTU}
	family := unix.AF_INET
	if local.Is6() {
		family, p.minPMTU = unix.AF_INET6, 0 // no path is narrower than the kernel's minimum MTU
	} else if text, err := os.ReadFile("/proc/sys/net/ipv4/route/min_pmtu"); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			p.minPMTU = n
		}
	}
	if fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP); err == nil {
		p.fd = fd
	}
	return p
}

func (p *paths) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
	if p.probes != nil {
		_ = p.probes.close()
	}
}

// run checks the paths until ctx is done.
func (p *paths) run(ctx context.Context) { every(ctx, pathsTick, p.look) }

// every calls f at an interval until ctx is done.
func every(ctx context.Context, interval time.Duration, f func()) {
	ticks := time.NewTicker(interval)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
			f()
		}
	}
}

// look checks the path to every peer once.
func (p *paths) look() {
	peers := p.peers()
	all := peers.All()
	if p.probes != nil {
		p.probes.receive(all)
	}
	asked := 0
	for i := range all {
		peer := all[(p.next+i)%len(all)]
		w := &peer.path.watched
		tx, rx := peer.Traffic.TXPackets.Load(), peer.Traffic.RXPackets.Load()
		sent, answered := int64(tx-w.tx) > 0, rx != w.rx
		w.tx, w.rx = tx, rx
		if p.separated {
			peer.listen(sent, answered)
			if sent && !answered {
				p.ask(peer)
			}
		}
		if p.probes != nil && peer.path.limits.load().kernel() != trusted {
			p.judge(peer)
		}
		if sent && p.fd >= 0 && asked < pathsAsked {
			if asked++; asked == pathsAsked {
				p.next = (p.next + i + 1) % len(all)
			}
			if p.probes != nil {
				p.judge(peer)
			}
			p.clamped(peer)
		}
		if p.probes != nil {
			_, to := peer.tunnelAddrs(peers.own)
			p.probes.tick(peer, to, sent, func() int { return p.widest(peer) })
		}
	}
}

// listen chooses the port from which packets go to a peer. It is called once per
// tick with whether packets were sent and whether any were answered.
//
// As long as it gets answers, a node follows its peer: it sends from the network's
// port while the peer does. A node that gets no answers chooses by itself until the
// shards' own ports have proved to work. Two nodes therefore never follow each other
// in circles, and a pair that needs the network's port, because of masquerade or a
// firewall at either end, uses it.
func (p *Peer) listen(sent, answered bool) {
	w, path := &p.path.watched, &p.path
	switch {
	case answered && !path.chosen.Load():
		w.silent = 0
	case answered:
		w.silent = 0
		w.served++
		if w.retry == 0 {
			w.retry = firstRetry
		}
		switch {
		case !path.fixedPort.Load() && w.served >= silentOwn:
			path.chosen.Store(false)
			w.retry = 0
		case path.fixedPort.Load() && w.served >= w.retry:
			w.served, w.retry = 0, 2*w.retry
			path.fixedPort.Store(false)
		}
	case sent:
		w.silent++
		if w.silent >= silentOwn {
			w.served = 0
			path.chosen.Store(true)
			path.fixedPort.Store((w.silent-silentOwn)%(silentFixed+silentAgain) < silentFixed)
		}
	}
}

// clamped determines whether the path to a peer may be narrower than the kernel
// reports: the kernel ignores any MTU below net.ipv4.route.min_pmtu. Packets that fit
// that MTU, but perhaps not the path, are then sent without DF; larger ones still
// fail with EMSGSIZE.
func (p *paths) clamped(peer *Peer) {
	if p.minPMTU == 0 {
		return
	}
	mtu, ok := p.ofKernel(peer)
	if !ok {
		return
	}
	size := 0
	if v := peer.path.limits.load(); int(mtu) <= p.minPMTU && (v.kernel() != refuted || v.widest() > 0) {
		size = int(mtu.Tunnel(p.local))
	}
	peer.path.limits.setWithoutDF(size)
}

// ofKernel returns the kernel's MTU of the path to a peer, if the kernel has one.
func (p *paths) ofKernel(peer *Peer) (encap.UnderlayMTU, bool) {
	if p.fd < 0 || unix.Connect(p.fd, sockaddr(peer.Endpoint)) != nil {
		return 0, false
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if p.local.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	mtu, err := unix.GetsockoptInt(p.fd, level, option)
	return encap.UnderlayMTU(mtu), err == nil
}

// widest returns the size of the largest inner packet that fits the device and, as far
// as the kernel knows, the path to a peer.
func (p *paths) widest(peer *Peer) int {
	v := peer.path.limits.load().kernel()
	if mtu, ok := p.ofKernel(peer); ok && v != doubted && v != refuted {
		return int(min(mtu.Tunnel(p.local), p.mtu))
	}
	return int(p.mtu)
}
