package fastpath

import (
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// tx moves packets from the TUN queue to the socket.
type tx struct {
	shard    *shard
	arena    []byte
	resolver *resolver
	splitter encap.Splitter
	sends    *sends
	tap      *tap
	c        *metrics.Direction
}

// newTX returns the sending direction of s. arena is the buffer for a batch; directions
// that run on one thread may share it, since it is free again when poll returns.
func newTX(s *shard, arena []byte) *tx {
	t := &tx{
		shard:    s,
		arena:    arena,
		resolver: newResolver(),
		tap:      &s.tap,
		c:        &s.counters.TX,
	}
	t.sends = newSends(s.sender, newExceptions(s), s.segments, s.local.Is6(), t.c)
	return t
}

// poll forwards a batch (direction). It returns an error if the device is gone.
func (t *tx) poll() (bytes int, more bool, err error) {
	t.resolver.use(t.shard.peers.Load())
	t.tap.use()
	reads, bytes, errno := t.batch()
	t.sends.flush()
	if reads > 0 {
		t.c.TunCalls.Add(uint64(reads))
		t.resolver.flush(t.shard.counters)
	}
	if t.sends.failed != nil {
		return bytes, false, t.sends.failed
	}
	if errno != 0 && errno != unix.EAGAIN {
		return bytes, false, deviceError("read from", errno)
	}
	return bytes, errno == 0, nil
}

// batch reads and handles packets until the arena is full (errno 0) or the
// queue is empty.
func (t *tx) batch() (reads, bytes int, errno unix.Errno) {
	for at := 0; len(t.arena)-at >= tun.ReadSize; reads++ {
		n, errno := t.shard.queue.Read(t.arena[at : at+tun.ReadSize])
		if errno != 0 {
			return reads, bytes, errno
		}
		t.packet(t.arena[at : at+n])
		bytes += n
		at = (at + n + 63) &^ 63 // a cache line
	}
	return reads, bytes, 0
}

// packet handles one read: a virtio-net header and a packet or super-packet,
// borrowed until the batch is flushed.
func (t *tx) packet(b []byte) {
	var h encap.Header
	if len(b) < tun.HeaderLen || !encap.Parse(b[tun.HeaderLen:], &h) {
		t.drop(metrics.DropMalformed, nil, b[min(len(b), tun.HeaderLen):])
		return
	}
	var v tun.Header
	v.Decode(b)
	pkt := b[tun.HeaderLen:]
	peer := t.resolver.peer(h.Dst)
	if peer == nil {
		t.drop(metrics.DropNoRoute, nil, pkt)
		t.shard.unreachable(pkt, &h)
		return
	}
	super, ok := superOf(&v)
	if !ok {
		t.drop(metrics.DropMalformed, peer, pkt)
		return
	}
	if super.Kind == encap.Whole {
		if super.Partial && (super.CsumStart < h.IPLen || !encap.CompleteChecksum(pkt, super.CsumStart, super.CsumOffset)) {
			t.drop(metrics.DropMalformed, peer, pkt)
			return
		}
		t.c.Merged.Observe(1)
		t.sends.add(peer, t.way(peer, pkt, &h, len(pkt)), pkt, nil)
		return
	}
	if t.splitter.Reset(pkt, &h, super) != nil {
		t.drop(metrics.DropMalformed, peer, pkt)
		return
	}
	if peer.Partial && t.shard.leavesPartial {
		t.splitter.LeavePartial()
	}
	w := t.way(peer, pkt, &h, t.splitter.HeaderLen()+super.Size)
	n := t.splitter.Remaining()
	t.c.Merged.Observe(n)
	for range n {
		hdr := t.sends.header(t.splitter.HeaderLen())
		t.sends.add(peer, w, hdr, t.splitter.Next(hdr))
	}
}

// drop counts a packet or super-packet that is dropped. peer is nil if it is for none.
func (t *tx) drop(reason metrics.Drop, peer *Peer, pkt []byte) {
	t.c.Drop(reason, 1)
	if t.tap.on() {
		t.tap.record(true, reason, peer.addr(), pkt, nil)
	}
}

// way decides how a packet of size bytes is sent: pkt, or a segment of it. h describes
// pkt.
func (t *tx) way(peer *Peer, pkt []byte, h *encap.Header, size int) way {
	w := way{tos: encap.OuterTOS(h.TOS), fragment: !h.DontFragment(pkt)}
	if limits := peer.path.limits.load(); limits != 0 && !w.fragment {
		w.fragment = size <= limits.withoutDF()
		w.wide = limits.widest() > 0 && size > limits.widest()
		w.direct = limits.kernel() == refuted
		if (w.wide || limits.kernel() == doubted) && t.shard.probes(pkt, h) {
			w.wide, w.direct = false, limits.kernel() != trusted
		}
	}
	return w
}

// superOf translates the device's description of a packet.
func superOf(v *tun.Header) (s encap.Super, ok bool) {
	if v.Flags&tun.FlagNeedsCsum != 0 {
		s.Partial, s.CsumStart, s.CsumOffset = true, int(v.CsumStart), int(v.CsumOffset)
	}
	switch v.GSOType {
	case tun.GSONone:
	case tun.GSOTCPv4, tun.GSOTCPv6:
		s.Kind, s.Size = encap.SegTCP, int(v.GSOSize)
	case tun.GSOUDPL4:
		s.Kind, s.Size = encap.SegUDP, int(v.GSOSize)
	default:
		return s, false
	}
	return s, true
}
