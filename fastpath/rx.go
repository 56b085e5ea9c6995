package fastpath

import (
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// slotSize is the size in bytes of the largest message that recvmmsg accepts, a whole GRO
// train.
const slotSize = 1 << 16

// briefMessages is the number of messages in a brief batch.
const briefMessages = 2

// rx moves packets from the socket to the TUN queue.
type rx struct {
	shard    *shard
	msgs     []mmsghdr
	iov      []unix.Iovec
	names    []unix.RawSockaddrInet6
	control  []byte
	arena    []byte
	check    sourceChecker
	merge    *encap.Coalescer
	header   [tun.HeaderLen]byte
	parts    [][]byte
	vectors  []unix.Iovec
	lanes    *lanes // of the thread
	tap      tap
	c        *metrics.Direction
	overflow uint32 // the kernel's count of drops on the socket, as of the latest datagram
	based    bool   // overflow is known
	// bareTrains means that the socket may still hold trains that arrived while UDP_GRO
	// was on, and that are read without their segment size now that it is off.
	bareTrains bool
}

// newRX returns the receiving direction of s. arena has a slot of slotSize bytes for each
// message that one recvmmsg accepts. Directions that run on one thread may share it, since
// it is no longer in use when poll returns.
func newRX(s *shard, arena []byte) *rx {
	slots := len(arena) / slotSize
	packets := slots * maxSegmentsOld // the most in a batch: a train in each slot
	r := &rx{
		shard:   s,
		msgs:    make([]mmsghdr, slots),
		iov:     make([]unix.Iovec, slots),
		names:   make([]unix.RawSockaddrInet6, slots),
		control: make([]byte, slots*recvControlLen),
		arena:   arena,
		check:   sourceChecker{mode: s.sourceCheck, resolver: newResolver()},
		merge:   encap.NewCoalescer(packets, s.mergeTCP, s.mergeUDP),
		parts:   make([][]byte, 0, packets+1),
		vectors: make([]unix.Iovec, 0, packets+2),
		lanes:   new(lanes),
		tap:     s.tap,
		c:       &s.counters.RX,
	}
	for i := range r.msgs {
		r.iov[i] = vector(r.arena[i*slotSize : (i+1)*slotSize])
		h := &r.msgs[i].hdr
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		setVectors(h, r.iov[i:i+1])
	}
	return r
}

// poll forwards a batch (direction). It returns an error if the device is gone.
func (r *rx) poll(brief bool) (bytes int, more bool, err error) {
	slots := len(r.msgs)
	if brief {
		slots = min(slots, briefMessages)
	}
	n, errno := r.receive(slots)
	switch errno {
	case 0:
	case unix.EINTR:
		return 0, true, nil
	case unix.EAGAIN:
		r.bareTrains = false
		return 0, false, nil
	default:
		// An unconnected socket does not report the ICMP errors that its datagrams
		// provoke. What remains is the kernel running out of memory, and the next
		// call may succeed.
		r.c.Drop(metrics.DropNoBuffer, 1)
		return 0, false, nil
	}
	r.check.use(r.shard.peers.Load())
	r.tap.use()
	for i := range n {
		if err := r.datagram(i); err != nil {
			return 0, false, err
		}
		bytes += int(r.msgs[i].len)
	}
	if err := r.write(); err != nil {
		return 0, false, err
	}
	r.c.SockCalls.Add(1)
	r.c.Datagrams.Add(uint64(n))
	r.check.resolver.flush(r.shard.counters)
	return bytes, n == slots, nil
}

// receive receives a message into each of the first slots, or fewer.
func (r *rx) receive(slots int) (int, unix.Errno) {
	for i := range slots {
		h := &r.msgs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.Flags = 0
		setControl(h, r.control[i*recvControlLen:(i+1)*recvControlLen])
	}
	return recvmmsg(r.shard.fd, r.msgs[:slots])
}

// datagram handles message i, which is one datagram or a GRO train of them.
func (r *rx) datagram(i int) error {
	h := &r.msgs[i].hdr
	var info recvInfo
	ok := parseControl(r.control[i*recvControlLen:][:h.Controllen], &info)
	r.overflows(info)
	from := decodeSockaddr(&r.names[i])
	b := r.arena[i*slotSize:][:r.msgs[i].len]
	// Without its control messages a train looks like a datagram.
	if !ok || h.Flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		r.drop(metrics.DropTruncated, from.Addr(), b)
		return nil
	}
	segment := info.segment
	if segment == 0 {
		segment = max(len(b), 1)
		if r.bareTrains {
			segment = ipLength(b)
		}
	}
	segments := max(1, (len(b)+segment-1)/segment)
	r.c.Segments.Observe(segments)
	// This comes before anything that takes time for each packet: a train has up to 64
	// of them, and costs its sender little.
	if r.check.stranger(from.Addr()) {
		r.c.Drop(metrics.DropUnknownPeer, segments)
		for r.tap.on() && len(b) > 0 {
			pkt := b[:min(segment, len(b))]
			b = b[len(pkt):]
			r.tap.record(false, metrics.DropUnknownPeer, from.Addr(), pkt)
		}
		return nil
	}
	carried := tally{from: from}
	added := false // the previous packet of the same message was added
	for {
		pkt := b[:min(segment, len(b))]
		b = b[len(pkt):]
		if added && r.merge.Follow(pkt) {
			carried.again(len(pkt))
		} else {
			var err error
			if added, err = r.packet(pkt, from.Addr(), info.tos, &carried); err != nil {
				return err
			}
		}
		if len(b) == 0 {
			break
		}
	}
	carried.flush()
	return nil
}

// ipLength returns the length of the IP packet at the beginning of b according to its
// length field, or that of b if the field is not plausible. It is the segment size if b
// is a train.
func ipLength(b []byte) int {
	var h encap.Header
	if !encap.Parse(b, &h) && h.IPLen > 0 && h.Len > h.IPLen {
		return min(h.Len, len(b))
	}
	return max(len(b), 1)
}

// packet checks the inner packet pkt that came from the peer at from, and
// adds it to the batch if it should be delivered.
func (r *rx) packet(pkt []byte, from netip.Addr, tos uint8, carried *tally) (added bool, err error) {
	var h encap.Header
	if !encap.Parse(pkt, &h) {
		r.drop(metrics.DropMalformed, from, pkt)
		return false, nil
	}
	peer, reason := r.check.admit(from, &h)
	if reason != admitted {
		r.drop(reason, from, pkt)
		return false, nil
	}
	if !encap.MergeECN(pkt, &h, tos) {
		r.drop(metrics.DropCongestion, from, pkt)
		return false, nil
	}
	carried.add(peer, len(pkt))
	if r.merge.Full() {
		if err := r.write(); err != nil {
			return false, err
		}
	}
	if r.shard.superTCP && encap.NeedsOversize(&h, r.shard.mtu) {
		super, ok := encap.Oversize(pkt, &h, r.shard.mtu)
		if !ok {
			r.drop(metrics.DropMalformed, from, pkt)
			return false, nil
		}
		r.merge.AddSuper(pkt, &h, super)
		return true, nil
	}
	// A peer that has read this node's announcement may send such packets before this
	// node has read the peer's.
	if r.shard.takesPartial && encap.PartialChecksum(pkt, &h) {
		if r.shard.vnet {
			r.merge.AddPartial(pkt, &h)
			return true, nil
		}
		encap.CompleteChecksum(pkt, h.IPLen, encap.ChecksumOffset(h.Proto))
	}
	r.merge.Add(pkt, &h)
	return true, nil
}

// drop counts a packet that is dropped. It came from the host at from.
func (r *rx) drop(reason metrics.Drop, from netip.Addr, pkt []byte) {
	r.c.Drop(reason, 1)
	if r.tap.on() {
		r.tap.record(false, reason, from, pkt)
	}
}

// write passes the batch to the device and begins a new one.
func (r *rx) write() error {
	runs := r.merge.Runs()
	r.lanes.begin()
	for i := range runs {
		run := &runs[i]
		v := headerOf(&run.Super, run.IPv6())
		v.Encode(r.header[:])
		if !r.tap.on() { // a capture needs the packets
			r.merge.Pack(run)
		}
		r.parts = r.merge.Vectors(run, r.parts[:0])
		if errno := r.writeVectors(); errno != 0 {
			if err := r.refused(run, errno); err != nil {
				return err
			}
			continue
		}
		r.written(run.Segments, run.Bytes())
		if r.tap.on() {
			r.record(run, forwarded)
		}
	}
	r.merge.Reset()
	return nil
}

// record passes the packets of a run to the capture.
func (r *rx) record(run *encap.Run, drop metrics.Drop) {
	for _, pkt := range r.merge.Packets(run, r.parts[:0]) {
		r.tap.record(false, drop, r.sender(pkt), pkt)
	}
}

// sender returns the public address of the peer that has the inner source of pkt.
func (r *rx) sender(pkt []byte) netip.Addr {
	src, _ := innerAddrs(pkt)
	return r.check.resolver.peer(src).addr()
}

func (r *rx) written(segments, bytes int) {
	r.c.TunCalls.Add(1)
	r.c.Merged.Observe(segments)
	r.c.Packets.Add(uint64(segments))
	r.c.Bytes.Add(uint64(bytes))
}

// writeVectors writes r.header and r.parts as one packet.
func (r *rx) writeVectors() unix.Errno {
	r.vectors = append(r.vectors[:0], vector(r.header[:]))
	for _, p := range r.parts {
		r.vectors = append(r.vectors, vector(p))
	}
	return r.lanes.write(r.shard.queue, r.parts[0], r.vectors)
}

// refused handles a run that the device did not accept. Some kernels of the 6.6
// and 6.10 series reject super-packets with EINVAL: the packets are then written
// one by one, and merging is disabled.
func (r *rx) refused(run *encap.Run, errno unix.Errno) error {
	if deviceGone(errno) {
		return deviceError("write to", errno)
	}
	if errno != unix.EINVAL || run.Segments == 1 {
		r.c.Drop(metrics.DropDeviceError, run.Segments)
		if r.tap.on() {
			r.record(run, metrics.DropDeviceError)
		}
		return nil
	}
	r.merge.Disable()
	r.shard.mergeRefused.Store(true)
	r.writeSingly(run)
	return nil
}

// writeSingly writes the packets of a run of several one by one. Since Pack may have
// overwritten their headers, it builds them from the run's header, as the kernel does. It
// allocates, since it is called only for the batch in which a device first refuses a
// super-packet.
func (r *rx) writeSingly(run *encap.Run) {
	super := slices.Concat(r.merge.Vectors(run, nil)...)
	var h encap.Header
	var s encap.Splitter
	if !encap.Parse(super, &h) || s.Reset(super, &h, run.Super) != nil {
		r.c.Drop(metrics.DropDeviceError, run.Segments)
		return
	}
	var v tun.Header
	v.Encode(r.header[:])
	for s.Remaining() > 0 {
		pkt := make([]byte, s.NextLen())
		copy(pkt[s.HeaderLen():], s.Next(pkt))
		r.vectors = append(r.vectors[:0], vector(r.header[:]), vector(pkt))
		if r.shard.queue.Write(r.vectors) != 0 {
			r.drop(metrics.DropDeviceError, r.sender(pkt), pkt)
			continue
		}
		r.written(1, len(pkt))
		if r.tap.on() {
			r.tap.record(false, forwarded, r.sender(pkt), pkt)
		}
	}
}

// overflows counts the datagrams that the kernel dropped on the socket. The kernel's own
// count, modulo 2³², is older than r if the socket comes from another process: what the
// first datagram has is not counted. A new socket has dropped none before its first one.
func (r *rx) overflows(info recvInfo) {
	switch {
	case !r.based:
		r.overflow, r.based = info.overflows, true
	case info.hasOverflow && info.overflows != r.overflow:
		r.shard.counters.SocketOverflows.Add(uint64(info.overflows - r.overflow))
		r.overflow = info.overflows
	}
}

// headerOf translates a super-packet's description into the device's header.
func headerOf(s *encap.Super, ipv6 bool) (v tun.Header) {
	if s.Partial {
		v.Flags, v.CsumStart, v.CsumOffset = tun.FlagNeedsCsum, uint16(s.CsumStart), uint16(s.CsumOffset)
	}
	if s.Kind == encap.Whole {
		return v
	}
	v.GSOSize, v.HdrLen = uint16(s.Size), uint16(s.HeaderLen)
	switch {
	case s.Kind == encap.SegUDP:
		v.GSOType = tun.GSOUDPL4
	case ipv6:
		v.GSOType = tun.GSOTCPv6
	default:
		v.GSOType = tun.GSOTCPv4
	}
	return v
}

// tally accumulates what a peer sent in one message, so that its counters are
// updated only once.
type tally struct {
	from           netip.AddrPort
	peer           *Peer
	packets, bytes uint64
}

func (t *tally) add(p *Peer, bytes int) {
	if p != t.peer {
		t.flush()
		t.peer = p
	}
	t.packets++
	t.bytes += uint64(bytes)
}

// again adds another packet of the peer that was last passed to add.
func (t *tally) again(bytes int) {
	t.packets++
	t.bytes += uint64(bytes)
}

func (t *tally) flush() {
	if t.peer != nil && t.packets > 0 {
		t.peer.Traffic.RXPackets.Add(t.packets)
		t.peer.Traffic.RXBytes.Add(t.bytes)
		t.peer.heard(t.from)
	}
	t.packets, t.bytes = 0, 0
}
