package fastpath

import (
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

const (
	// headroom is the space in the arena before the data that is read, in bytes. A
	// super-packet moves into it as the headers of its segments are inserted between their
	// payloads. It suffices for a super-packet of 64 KiB in segments of some 1,400 bytes,
	// with TCP timestamps over IPv6.
	headroom = 3584
	// maxHeader is the longest header of a super-packet that is split in place, in bytes.
	maxHeader = 128
	// maxReads is the number of packets in a batch, however small they are.
	maxReads = 256
)

// tx moves packets from the TUN queue to the socket.
type tx struct {
	shard    *shard
	arena    []byte
	header   [maxHeader]byte // of the super-packet that is being split
	resolver *resolver
	splitter encap.Splitter
	sends    *sends
	tap      *tap
	c        *metrics.Direction
}

// newTX returns the sending direction of s. arena is the buffer for a batch. Directions
// that run on one thread may share it, since it is no longer in use when poll returns.
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
func (t *tx) poll(brief bool) (bytes int, more bool, err error) {
	t.resolver.use(t.shard.peers.Load())
	t.tap.use()
	reads, bytes, errno := t.batch(brief)
	if errno == 0 && !t.shard.stopping.Load() {
		t.sends.hold()
	} else {
		t.sends.flush()
	}
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

// batch reads and handles packets until the batch is full (errno 0) or the
// queue is empty. Their bytes, in the form in which they will be sent, are adjacent in the
// arena.
func (t *tx) batch(brief bool) (reads, bytes int, errno unix.Errno) {
	for at := 0; reads < maxReads && !(brief && bytes > briefBytes) && len(t.arena)-at >= headroom+tun.ReadSize; reads++ {
		b := t.arena[at+headroom:]
		n, errno := t.shard.queue.Read(b[:tun.ReadSize])
		if errno != 0 {
			return reads, bytes, errno
		}
		at += t.packet(t.arena[at:], b[:n])
		bytes += n
	}
	return reads, bytes, 0
}

// packet handles b, the result of one read: a virtio-net header and a packet or
// super-packet. It writes the packets to send to the beginning of to, where they stay
// until the batch is flushed, and returns their total length in bytes. b is part of to
// and follows headroom bytes.
func (t *tx) packet(to, b []byte) int {
	var h encap.Header
	if len(b) < tun.HeaderLen || !encap.Parse(b[tun.HeaderLen:], &h) {
		t.drop(metrics.DropMalformed, nil, b[min(len(b), tun.HeaderLen):])
		return 0
	}
	var v tun.Header
	v.Decode(b)
	pkt := b[tun.HeaderLen:]
	peer := t.resolver.peer(h.Dst)
	if peer == nil {
		t.drop(metrics.DropNoRoute, nil, pkt)
		t.shard.unreachable(pkt, &h)
		return 0
	}
	super, ok := superOf(&v)
	if !ok {
		t.drop(metrics.DropMalformed, peer, pkt)
		return 0
	}
	if super.Kind != encap.Whole {
		return t.split(peer, to, pkt, &h, super)
	}
	if super.Partial && (super.CsumStart < h.IPLen || !encap.CompleteChecksum(pkt, super.CsumStart, super.CsumOffset)) {
		t.drop(metrics.DropMalformed, peer, pkt)
		return 0
	}
	t.c.Merged.Observe(1)
	w := t.way(peer, pkt, &h, len(pkt))
	n := copy(to, pkt)
	t.sends.add(peer, w, to[:n:n])
	return n
}

// split sends the segments of a super-packet. to and the result are those of packet.
func (t *tx) split(peer *Peer, to, pkt []byte, h *encap.Header, super encap.Super) int {
	if t.splitter.Reset(pkt, h, super) != nil {
		t.drop(metrics.DropMalformed, peer, pkt)
		return 0
	}
	if peer.Partial && t.shard.leavesPartial {
		t.splitter.LeavePartial()
	}
	hl, n := t.splitter.HeaderLen(), t.splitter.Remaining()
	w := t.way(peer, pkt, h, hl+super.Size)
	t.c.Merged.Observe(n)
	if n*hl > headroom || hl > maxHeader {
		t.splitAside(peer, w)
		return 0
	}
	t.splitter.MoveHeader(t.header[:])
	at := 0
	for range n {
		seg := to[at:]
		at += hl + copy(seg[hl:], t.splitter.Next(seg))
	}
	t.sends.addTrain(peer, w, to[:at:at], hl+super.Size)
	return at
}

// splitAside sends the segments of a super-packet whose headers take up more than
// headroom. It uses a separate buffer.
func (t *tx) splitAside(peer *Peer, w way) {
	hl, aside := t.splitter.HeaderLen(), t.shard.scratch[:]
	for at := 0; t.splitter.Remaining() > 0; {
		if len(aside)-at < t.splitter.NextLen() {
			t.sends.flush()
			at = 0
		}
		seg := aside[at:]
		end := hl + copy(seg[hl:], t.splitter.Next(seg))
		t.sends.add(peer, w, seg[:end:end])
		at += end
	}
	t.sends.flush()
}

// drop counts a packet or super-packet that is dropped. peer is nil if the packet is for
// no peer.
func (t *tx) drop(reason metrics.Drop, peer *Peer, pkt []byte) {
	t.c.Drop(reason, 1)
	if t.tap.on() {
		t.tap.record(true, reason, peer.addr(), pkt)
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
