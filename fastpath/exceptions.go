package fastpath

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/tun"
)

// exceptions is what a shard does with packets that cannot go the usual way.
// Only the TX thread uses it.
type exceptions struct {
	shard *shard
	wake  waiter
}

func (e *exceptions) wait() bool { return e.wake.wait() }

func (e *exceptions) gsoRefused(errno unix.Errno) {
	e.shard.counters.GSOFallbacks.Add(1)
	e.shard.gsoRefused.Store(uint32(errno))
	e.shard.logger.Warn("kernel refuses UDP GSO, sending without it",
		logging.KeyShard, e.shard.index, logging.KeyError, errno)
}

// tooBig sends the packet of m with fragmentation allowed if its sender allows
// that, and else tells the sender the MTU of the path. IPv6 has no links below
// 1280 bytes, and hosts take no advice to send less: there the tunnel is the
// one that fragments (RFC 2473 §7.1).
func (e *exceptions) tooBig(peer *Peer, m *message) (sent bool) {
	s := e.shard
	pkt := s.scratch[:0]
	for i := range m.iov {
		pkt = append(pkt, vectorBytes(&m.iov[i])...)
	}
	var h encap.Header
	if !encap.Parse(pkt, &h) {
		return false
	}
	if !h.DontFragment(pkt) || h.Version == 6 && h.Len <= encap.MinIPv6MTU {
		ipv6 := s.local.Is6()
		if setFragmenting(s.sendFD, ipv6, true) != nil {
			return false
		}
		n, _ := s.sender.send([]message{*m})
		_ = setFragmenting(s.sendFD, ipv6, false)
		return n == 1
	}
	if !s.icmpLimit.allow(time.Now()) {
		return false
	}
	path, err := pathMTU(s.local, peer)
	if err != nil {
		return false
	}
	mtu := encap.UnderlayMTU(path).Tunnel(s.local)
	if h.Version == 6 {
		mtu = max(mtu, encap.MinIPv6MTU)
	}
	if int(mtu) >= h.Len || !mtu.Usable(false) {
		return false // the kernel's mind has changed, or the path is of no use
	}
	s.reply(encap.TooBig(s.icmp[tun.HeaderLen:], pkt, &h, mtu))
	return false
}

// unreachable tells the sender of pkt that no peer holds its destination.
func (s *shard) unreachable(pkt []byte, h *encap.Header) {
	if s.icmpLimit.allow(time.Now()) {
		s.reply(encap.Unreachable(s.icmp[tun.HeaderLen:], pkt, h))
	}
}

// reply writes an ICMP error that stands in s.icmp to the TUN device, if there
// is one.
func (s *shard) reply(pkt []byte) {
	if pkt == nil {
		return
	}
	b := s.icmp[:tun.HeaderLen]
	clear(b)
	iov := [2]unix.Iovec{vector(b), vector(pkt)}
	if s.queue.Write(iov[:]) == nil {
		s.counters.ICMPSent.Add(1)
	}
}

const (
	// icmpRate and icmpBurst bound the ICMP errors of a shard, as
	// net.ipv4.icmp_msgs_per_sec does for the kernel's own.
	icmpRate  = 1000
	icmpBurst = 50
)

// limiter is a token bucket for one thread.
type limiter struct {
	tokens float64
	last   time.Time
}

func (l *limiter) allow(now time.Time) bool {
	l.tokens = min(icmpBurst, l.tokens+now.Sub(l.last).Seconds()*icmpRate)
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
