package encap

import (
	"bytes"
	"encoding/binary"
)

const (
	// maxRunSegments bounds a run so that its vectors fit one writev
	// (UIO_MAXIOV, 1024) with room for headers.
	maxRunSegments = 512
	// maxUDPSegments is UDP_MAX_SEGMENTS of kernels before 6.9, which
	// refuse longer trains.
	maxUDPSegments = 64
	// maxOpenRuns is how many flows may be interleaved in a batch and still
	// be coalesced. It limits the search for a packet's run.
	maxOpenRuns = 16
	// maxRunHeader is the longest header of a run: IPv6 without extension
	// headers, and TCP with all its options.
	maxRunHeader = ipv6HeaderLen + 60
)

// Run is a packet to write to the device: either one as it arrived, or a
// super-packet made of consecutive packets of one flow.
type Run struct {
	Super    Super
	Segments int // packets in it

	proto      uint8
	open       bool // more may join
	partial    bool // the packets' TCP or UDP checksums still have to be completed
	verified   bool // the first packet's checksums are known to be correct
	psh        bool
	headerLen  int // IP and transport
	ipLen      int
	total      int // bytes, headers once
	nextSeq    uint32
	nextID     uint16
	first      []byte // the first packet, whole
	head, tail int32  // chain of the packets after the first, in Coalescer.parts
}

// limit returns the largest number of segments of the run.
func (r *Run) limit() int {
	if r.proto == protoUDP {
		return maxUDPSegments
	}
	return maxRunSegments
}

// continues reports whether the header of pkt differs from that of the run's first packet,
// which is of the same length, only in what makes pkt the next segment, and whether its
// IPv4 header checksum is correct. If the run's checksums are partial, continues compares
// the checksum of pkt too.
func (r *Run) continues(pkt []byte) bool {
	a, b := r.first[:r.headerLen], pkt[:r.headerLen]
	if a[0]>>4 == 4 {
		const idMask = uint64(0xffff) << 16 // of the first eight bytes as a big-endian number
		x, y := binary.BigEndian.Uint64(a), binary.BigEndian.Uint64(b)
		if (x^y)&^idMask != 0 || x&ipv4DontFragment == 0 && uint16(y>>16) != r.nextID ||
			a[ipv4TTL] != b[ipv4TTL] || a[ipv4Proto] != b[ipv4Proto] ||
			binary.NativeEndian.Uint64(a[ipv4Src:]) != binary.NativeEndian.Uint64(b[ipv4Src:]) || !ipChecksumValid(b, r.ipLen) {
			return false
		}
	} else if !bytes.Equal(a[:ipv6HeaderLen], b[:ipv6HeaderLen]) {
		return false
	}
	ta, tb := a[r.ipLen:], b[r.ipLen:]
	at := ChecksumOffset(r.proto)
	if !samePorts(ta, tb) || r.partial && binary.NativeEndian.Uint16(ta[at:]) != binary.NativeEndian.Uint16(tb[at:]) {
		return false
	}
	if r.proto == protoUDP {
		return binary.NativeEndian.Uint16(ta[udpLength:]) == binary.NativeEndian.Uint16(tb[udpLength:]) &&
			binary.NativeEndian.Uint16(tb[udpChecksum:]) != 0
	}
	return binary.BigEndian.Uint32(tb[tcpSeq:]) == r.nextSeq &&
		binary.NativeEndian.Uint64(ta[tcpAck:]) == binary.NativeEndian.Uint64(tb[tcpAck:]) && // and offset, flags, window
		bytes.Equal(ta[tcpUrgent:], tb[tcpUrgent:])
}

// Bytes returns the sum of the lengths of the run's packets, IP headers
// included.
func (r *Run) Bytes() int { return r.total + (r.Segments-1)*r.headerLen }

// IPv6 reports whether the run's packets are IPv6.
func (r *Run) IPv6() bool { return r.first[0]>>4 == 6 }

type part struct {
	pkt  []byte
	next int32
}

// Coalescer joins consecutive packets of one flow into super-packets: TCP as
// the kernel's GRO does, UDP datagrams of one size if the device accepts
// them. It never merges across a change of DSCP, ECN, TTL, TCP options,
// window or acknowledgement, never merges fragments or packets with IP options, and
// never changes the order of packets of one flow. PSH or a short segment ends a run.
//
// A super-packet is passed to the kernel with a partial checksum, which
// makes the kernel skip verification. To keep a packet that was damaged before
// encapsulation from passing as intact, every packet's checksums are verified
// before it joins a run.
//
// A Coalescer belongs to one goroutine. Packets and runs are borrowed until
// Reset.
type Coalescer struct {
	tcp, udp bool
	runs     []Run
	open     []int32 // indices of open runs, oldest first
	last     int32   // index of the run that the last packet joined or began, or -1; see Follow
	parts    []part
	slab     []byte // headers of super-packets
}

// NewCoalescer returns a Coalescer for batches of up to n packets. tcp and
// udp state which super-packets the device accepts.
func NewCoalescer(n int, tcp, udp bool) *Coalescer {
	return &Coalescer{
		tcp: tcp, udp: udp,
		runs:  make([]Run, 0, n),
		open:  make([]int32, 0, maxOpenRuns),
		parts: make([]part, 0, n),
		slab:  make([]byte, 0, n/2*maxRunHeader),
		last:  -1,
	}
}

// Full reports whether the batch has no room for another packet.
func (c *Coalescer) Full() bool { return len(c.runs)+len(c.parts) == cap(c.runs) }

// Disable makes the Coalescer pass all further packets on unchanged, for a
// device that turns out not to accept super-packets.
func (c *Coalescer) Disable() { c.tcp, c.udp = false, false }

// Reset clears the batch.
func (c *Coalescer) Reset() {
	c.runs, c.open, c.parts, c.slab, c.last = c.runs[:0], c.open[:0], c.parts[:0], c.slab[:0], -1
}

// AddSuper adds a super-packet unchanged.
func (c *Coalescer) AddSuper(pkt []byte, h *Header, s Super) {
	c.closeFlow(pkt, h)
	c.runs = append(c.runs, Run{Super: s, Segments: 1, first: pkt, total: len(pkt), head: -1})
	c.last = -1
}

// Add adds the packet pkt that h describes to the batch. It must not be
// called when Full returns true.
func (c *Coalescer) Add(pkt []byte, h *Header) { c.add(pkt, h, false) }

// AddPartial is Add for a packet for which PartialChecksum returns true: it is not
// verified but passed to the device, which completes the checksum. The packet's
// integrity must have been protected by other means on its way.
func (c *Coalescer) AddPartial(pkt []byte, h *Header) { c.add(pkt, h, true) }

// Follow adds pkt if it is the next segment after the packet that was added last, and
// its header matches that packet's run. This holds for most packets of a train, which need
// no further inspection: Parse, and all that depends on its result, would find the same for
// pkt as for the previous packet, if both came in one train. Follow reports whether it
// has added pkt; if not, pkt is unchanged and may be passed to Add or AddPartial.
func (c *Coalescer) Follow(pkt []byte) bool {
	if c.last < 0 || c.Full() {
		return false
	}
	r := &c.runs[c.last]
	if !r.open || !r.verified || len(pkt) != len(r.first) || r.Segments == r.limit() ||
		r.total+len(pkt)-r.headerLen > MaxPacket || !r.continues(pkt) ||
		!r.partial && !checksumsValid(pkt, r.ipLen, r.proto) {
		return false
	}
	c.append(r, pkt)
	return true
}

func (c *Coalescer) add(pkt []byte, h *Header, partial bool) {
	hl := c.candidate(pkt, h)
	if hl == 0 {
		c.closeFlow(pkt, h)
		c.runs = append(c.runs, Run{
			Segments: 1, partial: partial, proto: h.Proto, ipLen: h.IPLen, first: pkt, total: len(pkt), head: -1,
		})
		c.last = -1
		return
	}
	for i := len(c.open) - 1; i >= 0; i-- {
		r := &c.runs[c.open[i]]
		if !sameFlow(r.first, pkt, r.ipLen, h) {
			continue
		}
		if c.join(r, pkt, h, hl, partial) {
			c.last = c.open[i]
			if !r.open {
				c.dropOpen(i)
			}
			return
		}
		r.open = false
		c.dropOpen(i)
		break
	}
	c.start(pkt, h, hl, partial)
}

// candidate returns the length of the headers of pkt if it may be part of a
// run, and 0 otherwise.
func (c *Coalescer) candidate(pkt []byte, h *Header) int {
	if h.Fragment || h.Version == 4 && h.IPLen != ipv4HeaderLen {
		return 0
	}
	tl := transportLen(pkt, h.IPLen, h.Proto)
	hl := h.IPLen + tl
	if tl == 0 || len(pkt) == hl {
		return 0
	}
	trans := pkt[h.IPLen:]
	switch h.Proto {
	case protoTCP:
		if !c.tcp || trans[tcpFlags]&(tcpSYN|tcpRST|tcpFIN|tcpURG|tcpCWR|tcpACK) != tcpACK {
			return 0
		}
	case protoUDP:
		if !c.udp || binary.BigEndian.Uint16(trans[udpChecksum:]) == 0 ||
			int(binary.BigEndian.Uint16(trans[udpLength:])) != len(trans) {
			return 0
		}
	}
	return hl
}

// start opens a run with its first packet.
func (c *Coalescer) start(pkt []byte, h *Header, hl int, partial bool) {
	r := Run{
		Segments: 1, partial: partial, proto: h.Proto, open: true,
		headerLen: hl, ipLen: h.IPLen, total: len(pkt), first: pkt, head: -1, tail: -1,
	}
	if h.Version == 4 {
		r.nextID = binary.BigEndian.Uint16(pkt[ipv4ID:]) + 1
	}
	if h.Proto == protoTCP {
		r.nextSeq = binary.BigEndian.Uint32(pkt[h.IPLen+tcpSeq:]) + uint32(len(pkt)-hl)
		r.open = pkt[h.IPLen+tcpFlags]&tcpPSH == 0
	}
	c.last = int32(len(c.runs))
	c.runs = append(c.runs, r)
	if !r.open {
		return
	}
	if len(c.open) == cap(c.open) {
		c.runs[c.open[0]].open = false
		c.dropOpen(0)
	}
	c.open = append(c.open, int32(len(c.runs)-1))
}

// join appends pkt to the run r of its flow if it continues it. It clears
// r.open if the run ends with it.
func (c *Coalescer) join(r *Run, pkt []byte, h *Header, hl int, partial bool) bool {
	payload := pkt[hl:]
	size := len(r.first) - r.headerLen
	if partial != r.partial || hl != r.headerLen || len(payload) > size || r.total+len(payload) > MaxPacket ||
		r.Segments == r.limit() || !sameHeaders(r, pkt, h, hl) {
		return false
	}
	valid := checksumsValid
	if partial {
		valid = func(b []byte, ipLen int, _ uint8) bool { return ipChecksumValid(b, ipLen) }
	}
	if !r.verified {
		if !valid(r.first, r.ipLen, r.proto) {
			return false
		}
		r.verified = true
	}
	if !valid(pkt, h.IPLen, h.Proto) {
		return false
	}
	c.append(r, pkt)
	if h.Proto == protoTCP && pkt[h.IPLen+tcpFlags]&tcpPSH != 0 {
		r.psh = true
	}
	r.open = !r.psh && len(payload) == size
	return true
}

// append appends pkt to the run r.
func (c *Coalescer) append(r *Run, pkt []byte) {
	at := int32(len(c.parts))
	c.parts = append(c.parts, part{pkt: pkt, next: -1})
	if r.head < 0 {
		r.head = at
	} else {
		c.parts[r.tail].next = at
	}
	n := len(pkt) - r.headerLen
	r.tail = at
	r.Segments++
	r.total += n
	r.nextID++
	r.nextSeq += uint32(n)
}

// dropOpen removes the i-th open run from the list of open runs.
func (c *Coalescer) dropOpen(i int) { c.open = append(c.open[:i], c.open[i+1:]...) }

// closeFlow ends the open runs of the flow of pkt, so that nothing that arrives
// later can overtake pkt. If pkt does not show its ports, these are all runs
// between its addresses.
func (c *Coalescer) closeFlow(pkt []byte, h *Header) {
	ports := !h.Fragment && transportLen(pkt, h.IPLen, h.Proto) > 0
	for i := len(c.open) - 1; i >= 0; i-- {
		r := &c.runs[c.open[i]]
		if r.first[0]>>4 != h.Version || !sameAddrs(r.first, pkt, h) ||
			ports && (r.proto != h.Proto || !samePorts(r.first[r.ipLen:], pkt[h.IPLen:])) {
			continue
		}
		r.open = false
		c.dropOpen(i)
	}
}

// samePorts compares the ports of two TCP or UDP headers.
func samePorts(a, b []byte) bool {
	return binary.NativeEndian.Uint32(a) == binary.NativeEndian.Uint32(b)
}

// sameAddrs compares source and destination of two packets of one IP version.
func sameAddrs(a, b []byte, h *Header) bool {
	if h.Version == 4 {
		return binary.NativeEndian.Uint64(a[ipv4Src:]) == binary.NativeEndian.Uint64(b[ipv4Src:])
	}
	return bytes.Equal(a[ipv6Src:ipv6Src+32], b[ipv6Src:ipv6Src+32])
}

// sameFlow reports whether b, which h describes, has the five-tuple of the
// first packet a of a run.
func sameFlow(a, b []byte, ipLen int, h *Header) bool {
	return a[0]>>4 == h.Version && protoOf(a) == h.Proto && ipLen == h.IPLen &&
		samePorts(a[ipLen:], b[ipLen:]) && sameAddrs(a, b, h)
}

func protoOf(b []byte) uint8 {
	if b[0]>>4 == 4 {
		return b[ipv4Proto]
	}
	return b[ipv6NextHeader]
}

// sameHeaders reports whether everything that the segments of a run share is equal
// in the run's first packet and in pkt, and whether pkt is the next in sequence.
func sameHeaders(r *Run, pkt []byte, h *Header, hl int) bool {
	a, b := r.first, pkt
	if h.Version == 4 {
		frag := binary.BigEndian.Uint16(b[ipv4Frag:])
		if a[ipv4TOS] != b[ipv4TOS] || a[ipv4TTL] != b[ipv4TTL] ||
			binary.BigEndian.Uint16(a[ipv4Frag:]) != frag {
			return false
		}
		// The kernel numbers the segments upwards when it splits the run
		// again; only atomic packets (RFC 6864) may lose their own ID.
		if frag&ipv4DontFragment == 0 && binary.BigEndian.Uint16(b[ipv4ID:]) != r.nextID {
			return false
		}
	} else if binary.NativeEndian.Uint32(a) != binary.NativeEndian.Uint32(b) || a[ipv6HopLimit] != b[ipv6HopLimit] {
		return false // traffic class or flow label
	}
	if r.proto == protoUDP {
		return true
	}
	ta, tb := a[r.ipLen:r.headerLen], b[r.ipLen:hl]
	return binary.BigEndian.Uint32(tb[tcpSeq:]) == r.nextSeq &&
		binary.NativeEndian.Uint32(ta[tcpAck:]) == binary.NativeEndian.Uint32(tb[tcpAck:]) &&
		ta[tcpDataOff] == tb[tcpDataOff] &&
		(ta[tcpFlags]^tb[tcpFlags])&^tcpPSH == 0 &&
		binary.NativeEndian.Uint16(ta[tcpWindow:]) == binary.NativeEndian.Uint16(tb[tcpWindow:]) &&
		bytes.Equal(ta[tcpUrgent:], tb[tcpUrgent:])
}

// Runs returns the batch in the order in which it must be written. It may be called
// once per batch, after the last Add.
func (c *Coalescer) Runs() []Run {
	for i := range c.runs {
		r := &c.runs[i]
		if r.Segments == 1 {
			if r.partial { // never set by AddSuper
				r.Super = r.single()
			}
			continue
		}
		r.Super = Super{
			Kind: SegTCP, Size: len(r.first) - r.headerLen, HeaderLen: r.headerLen,
			Partial: true, CsumStart: r.ipLen, CsumOffset: ChecksumOffset(r.proto),
		}
		if r.proto == protoUDP {
			r.Super.Kind = SegUDP
		}
	}
	return c.runs
}

// Vectors appends the bytes of run r to dst in the order in which they must be written:
// for a super-packet a newly built header, followed by each payload in place or, after
// Pack, by pieces of several payloads each.
func (c *Coalescer) Vectors(r *Run, dst [][]byte) [][]byte {
	if r.Segments == 1 {
		return append(dst, r.first)
	}
	dst = append(dst, c.header(r), r.first[r.headerLen:])
	for i := r.head; i >= 0; i = c.parts[i].next {
		dst = append(dst, c.parts[i].pkt[r.headerLen:])
	}
	return dst
}

// single describes one packet of a run for the device.
func (r *Run) single() (s Super) {
	if r.partial {
		s.Partial, s.CsumStart, s.CsumOffset = true, r.ipLen, ChecksumOffset(r.proto)
	}
	return s
}

// Packets appends the packets of run r to dst, in the order in which they were added.
func (c *Coalescer) Packets(r *Run, dst [][]byte) [][]byte {
	dst = append(dst, r.first)
	for i := r.head; i >= 0; i = c.parts[i].next {
		dst = append(dst, c.parts[i].pkt)
	}
	return dst
}

// header builds the headers of the super-packet for run r.
func (c *Coalescer) header(r *Run) []byte {
	at := len(c.slab)
	c.slab = append(c.slab, r.first[:r.headerLen]...)
	hdr := c.slab[at:]
	trans := hdr[r.ipLen:]
	setLen(hdr, r.ipLen, r.total)
	if r.proto == protoUDP {
		binary.BigEndian.PutUint16(trans[udpLength:], uint16(r.total-r.ipLen))
	} else if r.psh {
		trans[tcpFlags] |= tcpPSH
	}
	binary.BigEndian.PutUint16(trans[ChecksumOffset(r.proto):],
		fold(pseudoSum(hdr, r.proto, r.total-r.ipLen)))
	return hdr
}
