package fastpath

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/tun"
)

// exceptions handles a shard's packets that cannot take the usual path.
// Only the TX thread uses it.
type exceptions struct {
	shard *shard
	// wait waits until a socket may accept more: the one on the network's port,
	// or the shard's own. ready is false if the engine is stopping, or if waiting
	// failed with err.
	wait func(fixedPort bool) (ready bool, err error)
	// pathMTU returns the MTU of the path to a peer, in bytes of the outer
	// packet.
	pathMTU func(*Peer) (int, error)
}

func newExceptions(s *shard) *exceptions {
	own, fixed := waiterFor(s.stop, s.sendFD, unix.POLLOUT), waiterFor(s.stop, s.fd, unix.POLLOUT)
	return &exceptions{
		shard: s,
		wait: func(fixedPort bool) (bool, error) {
			if fixedPort {
				return fixed.wait()
			}
			return own.wait()
		},
		pathMTU: func(p *Peer) (int, error) { return pathMTU(s.local, p) },
	}
}

func (e *exceptions) gsoRefused(errno unix.Errno) {
	e.shard.counters.GSOFallbacks.Add(1)
	e.shard.gsoRefused.Store(uint32(errno))
	e.shard.logger.Warn("kernel refused UDP GSO, sending without it",
		logging.KeyShard, e.shard.index, logging.KeyError, errno)
}

// tooBig handles the packet of m, which does not fit the path to its peer. It
// reports whether the packet may be sent in a fragmented datagram, and sends an
// ICMP error with the path MTU to senders that can act on it.
//
// Only TCP retransmits what was lost, so everything else is delivered in
// fragments in addition to the error. IPv6 has no links below 1280 bytes, and hosts
// ignore smaller MTUs in ICMP errors, so for IPv6 the tunnel itself has to fragment
// (RFC 2473 §7.1). For IPv4, Linux does not accept MTUs below net.ipv4.route.min_pmtu
// either.
func (e *exceptions) tooBig(m *message) (fragment bool) {
	s := e.shard
	pkt := vectorBytes(&m.iov[0])
	var h encap.Header
	if !encap.Parse(pkt, &h) {
		return false
	}
	if !h.DontFragment(pkt) || h.Len <= leastLearnt(h.Version) {
		return true
	}
	if m.peer.path.limits.load().kernel() == doubted {
		return true
	}
	fragment = !h.Resent(pkt)
	if !s.tooBigs.allow(h.Src, time.Now()) {
		return fragment
	}
	path, err := e.pathMTU(m.peer)
	if err != nil {
		return fragment
	}
	mtu := encap.UnderlayMTU(path).Tunnel(s.local)
	switch v := m.peer.path.limits.load().kernel(); {
	case v == refuted:
		mtu = s.mtu
	case v == trusted && path < s.floor:
		return true // the path MTU will be doubted soon
	}
	if widest := m.peer.Widest(); widest > 0 {
		mtu = min(mtu, encap.TunnelMTU(widest))
	}
	if h.Version == 6 {
		mtu = max(mtu, encap.MinIPv6MTU)
	}
	if int(mtu) < h.Len && mtu.Usable(false) { // otherwise the kernel has learnt a different MTU since, or the path is unusable
		s.reply(encap.TooBig(s.icmp[tun.HeaderLen:], pkt, &h, mtu))
	}
	return fragment
}

// leastLearnt is the size in bytes below which a pod's packets of an IP version do not
// shrink, whatever path MTU the pod learns.
func leastLearnt(version uint8) int {
	if version == 6 {
		return encap.MinIPv6MTU
	}
	return defaultMinPMTU
}

// probes reports whether pkt, which h describes, is a probe of this node, which is sent
// whatever path MTU is known.
func (s *shard) probes(pkt []byte, h *encap.Header) bool {
	id, ok := encap.EchoID(pkt, h)
	return ok && s.probeID != 0 && id == s.probeID
}

// unreachable sends the ICMP error for pkt, whose destination belongs to no peer.
func (s *shard) unreachable(pkt []byte, h *encap.Header) {
	if s.unreachables.allow(h.Src, time.Now()) {
		s.reply(encap.Unreachable(s.icmp[tun.HeaderLen:], pkt, h))
	}
}

// reply writes the ICMP error pkt, which lies in s.icmp, to the TUN device. pkt is
// nil if no error may be sent.
func (s *shard) reply(pkt []byte) {
	if pkt == nil {
		return
	}
	b := s.icmp[:tun.HeaderLen]
	clear(b)
	iov := [2]unix.Iovec{vector(b), vector(pkt)}
	if s.queue.Write(iov[:]) != 0 {
		return
	}
	s.counters.ICMPSent.Add(1)
	if s.tap.on() {
		s.tap.record(false, forwarded, netip.Addr{}, pkt)
	}
}
