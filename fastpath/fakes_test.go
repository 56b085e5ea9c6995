package fastpath

import (
	"log/slog"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// The nodes of the tests: this one, two others, and one that sends over IPv6.
var (
	own   = []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")}
	peerB = NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:5:2::/64")},
		netip.MustParseAddrPort("192.0.2.2:8285"))
	peerC = NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.3.0/24")}, netip.MustParseAddrPort("192.0.2.3:8285"))
	peer6 = NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.6.0/24")}, netip.MustParseAddrPort("[2001:db8::6]:8285"))
	nodes = NewPeers(own, []*Peer{peerB, peerC, peer6})
)

// fakeQueue is a TUN queue: reads come from a list, writes go to one.
type fakeQueue struct {
	reads  [][]byte
	next   int
	loop   bool // begin again after the end has been seen once
	writes [][]byte
	refuse func(b []byte) unix.Errno // asked for each write, may be nil
	forget bool                      // do not keep writes
	wrote  int
	// steered is how many writes were made with Steer.
	steered int
	pieces  []int // vectors of each of writes, the virtio-net header's included
}

func (q *fakeQueue) Read(b []byte) (int, unix.Errno) {
	if q.next == len(q.reads) {
		if q.loop {
			q.next = 0
		}
		return 0, unix.EAGAIN
	}
	n := copy(b, q.reads[q.next])
	q.next++
	return n, 0
}

func (q *fakeQueue) Write(iov []unix.Iovec) unix.Errno {
	q.wrote++
	if q.forget {
		return 0
	}
	var b []byte
	for i := range iov {
		b = append(b, vectorBytes(&iov[i])...)
	}
	if q.refuse != nil {
		if errno := q.refuse(b); errno != 0 {
			return errno
		}
	}
	q.writes, q.pieces = append(q.writes, b), append(q.pieces, len(iov))
	return 0
}

func (q *fakeQueue) Steer(iov []unix.Iovec) unix.Errno {
	q.steered++
	return q.Write(iov)
}

func (q *fakeQueue) FD() int      { return -1 }
func (q *fakeQueue) Close() error { return nil }

// packets is what the kernel makes of the writes.
func (q *fakeQueue) packets(t testing.TB) [][]byte {
	t.Helper()
	var all [][]byte
	for _, b := range q.writes {
		pkts, err := cut(b)
		if err != nil {
			t.Fatalf("the device would refuse a write: %v", err)
		}
		all = append(all, pkts...)
	}
	return all
}

// newShard is a shard of an offload device between q and to.
func newShard(q tun.Queue, to sender) *shard {
	peers := new(atomic.Pointer[Peers])
	peers.Store(nodes)
	return &shard{
		queue: q, fd: -1, sendFD: -1, stop: -1, stopping: new(atomic.Bool),
		local: netip.MustParseAddr("192.0.2.1"), mtu: 1472,
		sender: to, segments: maxSegmentsOld,
		superTCP: true, mergeTCP: true, mergeUDP: true,
		peers: peers, counters: new(metrics.Shard), logger: slog.New(slog.DiscardHandler),
		tap: tap{taps: new(Taps), directions: 2},
	}
}

// datagram is a packet that the kernel has put on the wire.
type datagram struct {
	peer *Peer
	tos  uint8
	b    string
}

// kernel is a sender that does what Linux does with messages, as far as script
// lets it. It fails the test where Linux would answer with an error that the
// script has not planned.
type kernel struct {
	t        testing.TB
	segments int // UDP_MAX_SEGMENTS
	// script returns how many of msgs are accepted, or why none is. Nil accepts all.
	script func(msgs []message) (int, unix.Errno)

	calls int
	wire  []datagram
}

func (k *kernel) send(msgs []message) (int, unix.Errno) {
	k.calls++
	if k.calls > 1e6 {
		k.t.Fatal("sending for ever")
	}
	if len(msgs) == 0 || len(msgs) > maxMessages {
		k.t.Fatalf("sendmmsg of %d messages", len(msgs))
	}
	n := len(msgs)
	if k.script != nil {
		var errno unix.Errno
		if n, errno = k.script(msgs); n == 0 {
			return 0, errno
		}
	}
	for i := range msgs[:n] {
		k.deliver(&msgs[i])
	}
	return n, 0
}

func (k *kernel) deliver(m *message) {
	var b []byte
	for i := range m.iov {
		b = append(b, vectorBytes(&m.iov[i])...)
	}
	limit := maxTrain4
	if m.peer.Endpoint.Addr().Is6() {
		limit = maxTrain6
	}
	pkts := [][]byte{b}
	if m.packets > 1 {
		pkts = slices.Collect(slices.Chunk(b, m.segment))
	}
	switch {
	case len(b) != m.bytes:
		k.t.Fatalf("message of %d bytes claims %d", len(b), m.bytes)
	case len(pkts) != m.packets:
		k.t.Fatalf("message of %d packets claims %d", len(pkts), m.packets)
	case m.packets > k.segments:
		k.t.Fatalf("EINVAL: a train of %d packets", m.packets)
	case len(b) > limit:
		k.t.Fatalf("EMSGSIZE: a datagram of %d bytes", len(b))
	case len(m.iov) > 1024:
		k.t.Fatalf("EMSGSIZE: %d vectors", len(m.iov))
	}
	for _, p := range pkts {
		k.wire = append(k.wire, datagram{m.peer, m.tos, string(p)})
	}
}

// discard is a sender that accepts everything without examining it.
type discard struct{}

func (discard) send(msgs []message) (int, unix.Errno) { return len(msgs), 0 }

// arrival is one message from the socket.
type arrival struct {
	from     string
	b        []byte
	segment  int // of a GRO train, 0: one datagram
	tos      uint8
	overflow uint32
	flags    int32  // MSG_TRUNC, MSG_CTRUNC
	control  []byte // instead of what the fields above make
}

// arrive puts messages into r as recvmmsg does and handles them as run does,
// but for the writing.
func arrive(t testing.TB, r *rx, as ...arrival) {
	t.Helper()
	r.check.use(r.shard.peers.Load())
	for i, a := range as {
		place(t, r, i, a)
		if err := r.datagram(i); err != nil {
			t.Fatal(err)
		}
	}
}

// place puts a message into slot i of r.
func place(t testing.TB, r *rx, i int, a arrival) {
	t.Helper()
	control := a.control
	if control == nil {
		control = received(a)
	}
	h := &r.msgs[i].hdr
	r.msgs[i].len = uint32(copy(vectorBytes(&r.iov[i]), a.b))
	copy(r.control[i*recvControlLen:], control)
	setControl(h, r.control[i*recvControlLen:][:len(control)])
	h.Flags = a.flags
	h.Namelen = encodeSockaddr(&r.names[i], netip.AddrPortFrom(netip.MustParseAddr(a.from), 8285))
}

// arriveAgain returns a function that restores the messages that are in r now, which r
// moves within their memory.
func arriveAgain(r *rx) func() {
	messages := slices.Clone(r.arena)
	return func() {
		for i := range r.msgs {
			at := i * slotSize
			copy(r.arena[at:], messages[at:][:r.msgs[i].len])
		}
	}
}

// received is the control messages of a as the kernel writes them to an IPv4
// socket.
func received(a arrival) []byte {
	b := make([]byte, 0, recvControlLen)
	if a.overflow != 0 {
		b = appendControl(b, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, native32(a.overflow))
	}
	b = appendControl(b, unix.IPPROTO_IP, unix.IP_TOS, []byte{a.tos})
	if a.segment != 0 {
		b = appendControl(b, unix.SOL_UDP, unix.UDP_GRO, native32(uint32(a.segment)))
	}
	return b
}

// drops lists the reasons for which c has dropped packets.
func drops(c *metrics.Direction) map[metrics.Drop]uint64 {
	m := map[metrics.Drop]uint64{}
	for d := range metrics.NumDrops {
		if n := c.Drops[d].Load(); n != 0 {
			m[d] = n
		}
	}
	return m
}

func dropped(c *metrics.Direction) (n uint64) {
	for _, v := range drops(c) {
		n += v
	}
	return n
}

// biggest returns the highest bound of h that some batch went above.
func biggest(h *metrics.BatchSizes) float64 {
	count, _, cumulative := h.Snapshot()
	above := 0.0
	for bound, n := range cumulative {
		if n < count {
			above = math.Max(above, bound)
		}
	}
	return above
}
