package fastpath

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/twillnet/twill/metrics"
)

// tap passes the packets of one direction to the capture in progress, if there is one. It
// belongs to the thread of the direction.
type tap struct {
	taps       *Taps
	directions int      // of the engine
	capture    *Capture // of the current batch
	ring       *ring    // in capture; nil: the capture has no memory left for one
	at         int64    // see stamp
}

// use makes the tap follow the start and the end of captures. It is called once per
// batch.
func (t *tap) use() {
	if c := t.taps.current.Load(); c != t.capture {
		t.capture, t.ring = c, nil
		if c != nil {
			t.ring = c.ring(t.directions)
		}
	}
	t.stamp()
}

// stamp records the current time as that of the packets that follow. It is called when
// they were received or read, before they are passed on, so that no answer appears to be
// older than its request.
func (t *tap) stamp() {
	if t.on() {
		t.at = time.Now().UnixNano()
	}
}

// on reports whether there is a capture.
func (t *tap) on() bool { return t.capture != nil }

// forwarded is the drop reason of a packet that was not dropped.
const forwarded = metrics.NumDrops

// record passes the packet pkt to the capture, which is on. outer is as in
// CapturedPacket.
func (t *tap) record(out bool, drop metrics.Drop, outer netip.Addr, pkt []byte) {
	c := t.capture
	if !c.wants(drop, outer, pkt) {
		return
	}
	h := record{time: t.at, length: uint32(len(pkt)), out: out, drop: drop}
	if outer.IsValid() {
		h.outer, h.outerLen = outer.As16(), uint8(outer.BitLen()/8)
	}
	if c.snaplen > 0 {
		pkt = pkt[:min(len(pkt), c.snaplen)]
	}
	if t.ring == nil || !t.ring.put(&h, pkt) {
		c.lost.Add(1)
	}
}

// ring holds packets on their way from one direction to the reader of a capture. One
// thread writes, and one reads.
type ring struct {
	buf  []byte // its length is a power of two
	head atomic.Uint64
	_    [64]byte
	tail atomic.Uint64
	end  uint64 // where the reader stops in this turn
	_    [64]byte
	lost uint32 // packets since the last that had room; for the writer
}

// record is what precedes a packet in a ring.
type record struct {
	time     int64    // nanoseconds since 1970
	length   uint32   // of the packet
	size     uint32   // bytes of it in the ring
	lost     uint32   // see ring
	outer    [16]byte // see CapturedPacket
	outerLen uint8    // 0, 4 or 16
	out      bool
	drop     metrics.Drop
}

// recordLen is the length of an encoded record in bytes.
const recordLen = 40

func (h *record) encode(b *[recordLen]byte) {
	binary.NativeEndian.PutUint64(b[0:], uint64(h.time))
	binary.NativeEndian.PutUint32(b[8:], h.length)
	binary.NativeEndian.PutUint32(b[12:], h.size)
	binary.NativeEndian.PutUint32(b[16:], h.lost)
	b[20], b[21], b[22] = h.outerLen, uint8(h.drop), 0
	if h.out {
		b[22] = 1
	}
	copy(b[24:], h.outer[:])
}

func (h *record) decode(b *[recordLen]byte) {
	h.time = int64(binary.NativeEndian.Uint64(b[0:]))
	h.length = binary.NativeEndian.Uint32(b[8:])
	h.size = binary.NativeEndian.Uint32(b[12:])
	h.lost = binary.NativeEndian.Uint32(b[16:])
	h.outerLen, h.drop, h.out = b[20], metrics.Drop(b[21]), b[22] == 1
	h.outer = [16]byte(b[24:])
}

// outerAddr returns the address in h.
func (h *record) outerAddr() netip.Addr {
	switch h.outerLen {
	case 0:
		return netip.Addr{}
	case 4:
		return netip.AddrFrom16(h.outer).Unmap()
	}
	return netip.AddrFrom16(h.outer)
}

// put adds a packet. It reports whether there was room.
func (r *ring) put(h *record, pkt []byte) bool {
	h.size, h.lost = uint32(len(pkt)), r.lost
	at := r.head.Load()
	if need := uint64(recordLen) + uint64(h.size); uint64(len(r.buf))-(at-r.tail.Load()) < need {
		r.lost++
		return false
	}
	var b [recordLen]byte
	h.encode(&b)
	for _, part := range [...][]byte{b[:], pkt} {
		n := copy(r.buf[at&uint64(len(r.buf)-1):], part)
		copy(r.buf, part[n:])
		at += uint64(len(part))
	}
	r.head.Store(at)
	r.lost = 0
	return true
}

// peek returns the record of the next packet before r.end, if there is one.
func (r *ring) peek() (h record, ok bool) {
	at := r.tail.Load()
	if at == r.end {
		return h, false
	}
	var b [recordLen]byte
	r.copy(b[:], at)
	h.decode(&b)
	return h, true
}

// take removes and returns the next packet, whose record h peek has returned. The packet
// may be in the memory of into.
func (r *ring) take(h *record, into []byte) []byte {
	if cap(into) < int(h.size) {
		into = make([]byte, max(int(h.size), 1<<16))
	}
	into = into[:h.size]
	at := r.tail.Load()
	r.copy(into, at+recordLen)
	r.tail.Store(at + recordLen + uint64(h.size))
	return into
}

// copy copies the content of the ring from at on to b.
func (r *ring) copy(b []byte, at uint64) {
	n := copy(b, r.buf[at&uint64(len(r.buf)-1):])
	copy(b[n:], r.buf)
}
