package fastpath

import (
	"errors"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twillnet/twill/metrics"
)

// A capture sees each packet once: in the form it has in its datagram, when the kernel has
// accepted or delivered it, or where it is dropped. Each direction of a shard writes its
// packets to a ring of its own, which one reader empties. If a ring is full, packets are
// lost and counted; the direction is never delayed.

const (
	// captureMemory bounds the rings of a capture, in bytes.
	captureMemory = 32 << 20
	// captureShare is the memory, in bytes, that is divided equally among the directions
	// of an engine, unless a share would be less than minRing.
	captureShare = 16 << 20
	// minRing has room for a packet of any size.
	minRing = 1 << 18
)

// ErrCapturing reports that a capture is already in progress.
var ErrCapturing = errors.New("another capture is in progress")

// CaptureOptions select the packets of a capture. A packet must meet all conditions that
// are set.
type CaptureOptions struct {
	Peers   []netip.Addr   // public addresses of the other end
	Pods    []netip.Prefix // inner source or destination
	Drops   []metrics.Drop // dropped for one of these reasons
	Snaplen int            // bytes of a packet that are kept; 0: all
}

// Taps connects engines to captures. Several engines may share one, at the same time or
// one after the other; a capture continues when an engine is replaced. The zero value is
// ready to use, and is safe for concurrent use.
type Taps struct{ current atomic.Pointer[Capture] }

// Start begins a capture. It returns ErrCapturing if there is one already. The caller
// must call Stop in the end.
func (t *Taps) Start(o CaptureOptions) (*Capture, error) {
	c := &Capture{taps: t, peers: o.Peers, pods: o.Pods, snaplen: o.Snaplen}
	for _, d := range o.Drops {
		c.drops |= 1 << d
	}
	if !t.current.CompareAndSwap(nil, c) {
		return nil, ErrCapturing
	}
	return c, nil
}

// Capture is a capture in progress. Drain and Lost belong to one goroutine.
type Capture struct {
	taps    *Taps
	peers   []netip.Addr
	pods    []netip.Prefix
	drops   uint32 // a bit for each reason; 0: dropped or not
	snaplen int

	mu     sync.Mutex
	rings  []*ring
	memory int           // of rings, in bytes
	lost   atomic.Uint64 // packets

	data []byte // of the packet that Drain passes on
}

// CapturedPacket is a packet seen by a capture.
type CapturedPacket struct {
	Time time.Time
	Out  bool         // from a pod of this node to another node; otherwise in the other direction
	Drop metrics.Drop // metrics.NumDrops: it was not dropped
	// Outer is the public address of the peer, or of the host that sent the datagram if
	// it is not a peer. It is invalid if there is none: no peer has the destination, or
	// the packet is an ICMP error that this node's engine wrote.
	Outer  netip.Addr
	Length int    // in bytes
	Data   []byte // the packet, or its beginning
	Lost   int    // packets lost immediately before this one because the ring was full
}

// Stop ends the capture. Drain then returns the rest. Further calls do nothing.
func (c *Capture) Stop() { c.taps.current.CompareAndSwap(c, nil) }

// Lost returns how many packets were lost because the rings were full.
func (c *Capture) Lost() uint64 { return c.lost.Load() }

// Drain calls f for each packet seen since the last call, in chronological order.
// The packet is valid until f returns. Drain stops at the first error of f and returns it.
func (c *Capture) Drain(f func(*CapturedPacket) error) error {
	c.mu.Lock()
	rings := slices.Clone(c.rings)
	c.mu.Unlock()
	for _, r := range rings {
		r.end = r.head.Load()
	}
	for {
		var first *ring
		var h record
		for _, r := range rings {
			if next, ok := r.peek(); ok && (first == nil || next.time < h.time) {
				first, h = r, next
			}
		}
		if first == nil {
			return nil
		}
		c.data = first.take(&h, c.data)
		p := CapturedPacket{
			Time: time.Unix(0, h.time), Out: h.out, Drop: h.drop, Outer: h.outerAddr(),
			Length: int(h.length), Data: c.data, Lost: int(h.lost),
		}
		if err := f(&p); err != nil {
			return err
		}
	}
}

// ring returns a ring for a direction of an engine that has the given number of
// directions, or nil if the capture has used up its memory.
func (c *Capture) ring(directions int) *ring {
	c.mu.Lock()
	defer c.mu.Unlock()
	size := max(minRing, 1<<(bits.Len(uint(captureShare/directions))-1))
	if c.memory+size > captureMemory {
		return nil
	}
	r := &ring{buf: make([]byte, size)}
	c.memory += size
	c.rings = append(c.rings, r)
	return r
}

// wants reports whether the capture selects a packet.
func (c *Capture) wants(drop metrics.Drop, outer netip.Addr, pkt []byte) bool {
	if c.drops != 0 && c.drops&(1<<drop) == 0 {
		return false
	}
	if len(c.peers) > 0 && !slices.Contains(c.peers, outer) {
		return false
	}
	if len(c.pods) == 0 {
		return true
	}
	src, dst := innerAddrs(pkt)
	return slices.ContainsFunc(c.pods, func(p netip.Prefix) bool { return p.Contains(src) || p.Contains(dst) })
}

// innerAddrs returns the addresses of a packet that may be malformed. b holds at least its
// IP header. The addresses are invalid if there is no IP header.
func innerAddrs(b []byte) (src, dst netip.Addr) {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4: // RFC 791 §3.1
		return netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	case len(b) >= 40 && b[0]>>4 == 6: // RFC 8200 §3
		return netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	}
	return src, dst
}
