package netlab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/mmsg"
)

const (
	relayBatch = 64
	// relayHeld bounds the frames that wait in one direction.
	relayHeld = 64
	// relayPatience is how long held frames wait for later ones.
	relayPatience = 2 * time.Millisecond
	// relayBuffer is the socket buffer of a port in bytes: some 5,000 frames.
	relayBuffer = 16 << 20
)

// Offsets in a frame as packetSocket reads it.
const (
	vnetHeaderLen     = 10 // struct virtio_net_hdr
	vnetCsumStart     = 6  // native endian, counted from the Ethernet header
	vnetCsumOffset    = 8
	macLen            = 6
	ethernetHeaderLen = 14
	ethernetType      = vnetHeaderLen + 12
)

// relayPort is the relay's connection to one host, and the state of the
// goroutine that reads it.
type relayPort struct {
	relay *Relay
	fd    int              // packet socket; the other ports' goroutines send on it
	mac   net.HardwareAddr // of the host
	rng   *rand.Rand

	in    *mmsg.Batch
	slots [][]byte // memory of in
	out   *mmsg.Batch
	queue []relayFrame // sent at the end of the batch, in order
	held  []relayFrame // to be sent after later frames
	free  [][]byte     // memory for held frames, relayHeld together with held and spent
	spent [][]byte     // memory of formerly held frames in queue
}

// relayFrame is a frame with its virtio header in front.
type relayFrame struct {
	buf   []byte
	after int // how many frames have to overtake it, while it is held
}

func newRelayPort(r *Relay, wire *Namespace, h *Host, mtu int, rng *rand.Rand) (*relayPort, error) {
	eth0, err := h.NS.nl.LinkByName(UnderlayLink)
	if err != nil {
		return nil, err
	}
	port, err := wire.nl.LinkByName(portName(h))
	if err != nil {
		return nil, err
	}
	p := &relayPort{relay: r, mac: eth0.Attrs().HardwareAddr, rng: rng}
	if err := wire.Do(func() error {
		p.fd, err = packetSocket(port.Attrs().Index)
		return err
	}); err != nil {
		return nil, err
	}
	p.in, p.out = mmsg.NewBatch(relayBatch), mmsg.NewBatch(relayBatch+relayHeld)
	size := vnetHeaderLen + ethernetHeaderLen + mtu
	for i := range relayBatch {
		p.slots = append(p.slots, make([]byte, size))
		p.in.Set(i, p.slots[i])
	}
	for range relayHeld {
		p.free = append(p.free, make([]byte, 0, size))
	}
	return p, nil
}

// packetSocket opens a socket that reads and writes the frames of a link, each
// preceded by a virtio-net header, so that the receiving side knows about a checksum
// that was left to the card.
func packetSocket(index int) (int, error) {
	// Protocol 0: nothing arrives before bind, and so nothing from other links.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	for _, o := range []struct {
		name              string
		level, opt, value int
	}{
		{"PACKET_VNET_HDR", unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{"PACKET_IGNORE_OUTGOING", unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1}, // Linux 4.20
		{"SO_RCVBUFFORCE", unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, relayBuffer},
		{"SO_SNDBUFFORCE", unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, relayBuffer},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("packet socket: set %s: %w", o.name, err)
		}
	}
	// sll_protocol is in network byte order.
	protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("packet socket: bind: %w", err)
	}
	return fd, nil
}

// run forwards frames from the port until the relay is stopped.
func (p *relayPort) run() {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}, {Fd: int32(p.relay.stopFD), Events: unix.POLLIN}}
	for {
		timeout := -1
		if len(p.held) > 0 {
			timeout = int(relayPatience.Milliseconds())
		}
		n, err := unix.Poll(fds, timeout)
		if err != nil && err != unix.EINTR || fds[1].Revents != 0 {
			return
		}
		if n == 0 {
			p.releaseHeld(relayHeld)
		}
		n, err = p.in.Recv(p.fd, unix.MSG_TRUNC)
		if err != nil {
			n = 0 // EAGAIN, or ENETDOWN while the topology is being removed
		}
		p.relay.received.Add(uint64(n))
		for i := range n {
			if p.in.Len(i) > len(p.slots[i]) {
				p.relay.overflow.Add(1)
				continue
			}
			p.decide(p.slots[i][:p.in.Len(i)])
		}
		p.flush()
	}
}

// decide queues, holds, corrupts or drops a frame, whose memory is valid until
// the next Recv.
func (p *relayPort) decide(frame []byte) {
	impair := p.relay.impair.Load()
	if !isIP(frame) {
		p.queue = append(p.queue, relayFrame{buf: frame})
		return
	}
	if p.rng.Float64() < impair.Loss {
		p.relay.dropped.Add(1)
		return
	}
	if impair.Mark > 0 && p.rng.Float64() < impair.Mark && markCongestion(frame) {
		p.relay.marked.Add(1)
	}
	if p.rng.Float64() < impair.Corrupt {
		p.relay.corrupted.Add(1)
		completeChecksum(frame)
		at := vnetHeaderLen + ethernetHeaderLen + p.rng.IntN(len(frame)-vnetHeaderLen-ethernetHeaderLen)
		frame[at] ^= 1 << p.rng.IntN(8)
	}
	if len(p.free) > 0 && p.rng.Float64() < impair.Reorder {
		p.relay.reordered.Add(1)
		buf := append(p.free[len(p.free)-1], frame...)
		p.free = p.free[:len(p.free)-1]
		p.held = append(p.held, relayFrame{buf: buf, after: impair.ReorderBy})
		return
	}
	p.queue = append(p.queue, relayFrame{buf: frame})
	p.releaseHeld(1)
}

// releaseHeld records that passed further frames were queued, and queues the held frames
// that are now due.
func (p *relayPort) releaseHeld(passed int) {
	kept := p.held[:0]
	for _, f := range p.held {
		if f.after -= passed; f.after > 0 {
			kept = append(kept, f)
			continue
		}
		p.queue = append(p.queue, f)
		p.spent = append(p.spent, f.buf[:0])
	}
	p.held = kept
}

// flush sends the queue: each frame to the host it is addressed to, or to all
// others.
func (p *relayPort) flush() {
	for _, to := range p.relay.ports {
		if to == p {
			continue
		}
		n := 0
		for _, f := range p.queue {
			mac := f.buf[vnetHeaderLen:][:macLen]
			if isGroup := mac[0]&1 != 0; isGroup || bytes.Equal(mac, to.mac) {
				p.out.Set(n, f.buf)
				n++
			}
		}
		p.send(to.fd, n)
	}
	p.queue = p.queue[:0]
	p.free = append(p.free, p.spent...)
	p.spent = p.spent[:0]
}

// send sends the first n messages of out and counts those that are refused.
func (p *relayPort) send(fd, n int) {
	for sent := 0; sent < n; {
		m, err := p.out.Send(fd, sent, n, 0)
		if err != nil {
			p.relay.overflow.Add(1) // ENOBUFS: the other end's queue is full
			m = 1
		}
		sent += m
	}
}

func isIP(frame []byte) bool {
	if len(frame) <= vnetHeaderLen+ethernetHeaderLen {
		return false
	}
	t := binary.BigEndian.Uint16(frame[ethernetType:])
	return t == unix.ETH_P_IP || t == unix.ETH_P_IPV6
}

// completeChecksum computes the checksum that the virtio header leaves to the card.
// Otherwise the receiver would trust a corrupted frame like one that never left the
// machine.
func completeChecksum(frame []byte) {
	flags := frame[0]
	frame[0] = 0
	if flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
		return
	}
	start := int(binary.NativeEndian.Uint16(frame[vnetCsumStart:]))
	offset := int(binary.NativeEndian.Uint16(frame[vnetCsumOffset:]))
	covered := frame[vnetHeaderLen+start:] // the field holds the pseudo-header's sum
	var sum uint32
	for i, b := range covered {
		sum += uint32(b) << (8 * (1 - i&1))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	if sum = ^sum & 0xffff; sum == 0 {
		sum = 0xffff // RFC 768: zero means that there is no checksum
	}
	binary.BigEndian.PutUint16(covered[offset:], uint16(sum))
}
