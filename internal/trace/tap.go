package trace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Sight is a place on a node where probes were seen.
type Sight struct {
	Device string `json:"device"`
	Out    bool   `json:"out"`    // leaving by the device, not arriving
	Outer  bool   `json:"outer"`  // inside the packet that carries it between the nodes
	Answer bool   `json:"answer"` // an answer to a probe
	Full   bool   `json:"full"`   // of full size
	Count  int    `json:"packets"`
}

// Tap sees the probes of a trace on all interfaces of a network namespace, by a packet
// socket whose filter lets nothing else through. It belongs to one goroutine.
type Tap struct {
	fd       int
	packet   Packet
	mark     Mark
	overhead int
	sights   []Sight
}

// NewTap opens a tap in the network namespace of the calling thread. overhead is the
// number of bytes that the backend puts before a packet, IP header included. It needs
// CAP_NET_RAW.
func NewTap(p Packet, m Mark, overhead int) (*Tap, error) {
	network := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // packet(7) wants network byte order
	// It gets packets once it is bound, when the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w; run as root", err)
	}
	t := &Tap{fd: fd, packet: p, mark: m, overhead: overhead}
	filter := p.filter(m, overhead)
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set up packet socket: %w", err)
	}
	return t, nil
}

// filter returns a classic BPF program (Documentation/networking/filter.rst) that accepts
// what has the mark in one of its places. A load beyond the end of a packet rejects it, so
// the places are in ascending order.
func (p *Packet) filter(m Mark, overhead int) []unix.SockFilter {
	var offsets []int
	for _, at := range p.places(overhead) {
		offsets = append(offsets, at.offset)
	}
	slices.Sort(offsets)
	var program []unix.SockFilter
	for _, offset := range slices.Compact(offsets) {
		program = append(program,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: uint32(offset)},
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: ^uint32(1)},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(m)},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: snaplen})
	}
	return append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
}

// snaplen is how many bytes of a probe are read: as far as a mark may stand.
const snaplen = 256

// Sights returns where probes have been seen so far, in the order of the first at each
// place.
func (t *Tap) Sights() []Sight {
	b := make([]byte, snaplen)
	for {
		n, from, err := unix.Recvfrom(t.fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if err != nil || !ok {
			return t.sights
		}
		at, full, found := t.packet.find(b[:n], t.mark, t.overhead)
		if !found {
			continue
		}
		s := Sight{Out: link.Pkttype == unix.PACKET_OUTGOING, Outer: at.outer, Answer: at.answer, Full: full}
		if dev, err := net.InterfaceByIndex(link.Ifindex); err == nil {
			s.Device = dev.Name
		}
		t.add(s)
	}
}

func (t *Tap) add(s Sight) {
	i := slices.IndexFunc(t.sights, func(o Sight) bool {
		o.Count = 0
		return o == s
	})
	if i < 0 {
		i, t.sights = len(t.sights), append(t.sights, s)
	}
	t.sights[i].Count++
}

// Wait waits until something was seen, but no longer than limit.
func (t *Tap) Wait(limit time.Duration) error {
	fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(limit.Milliseconds())+1); err != nil && err != unix.EINTR {
		return fmt.Errorf("wait for probes: %w", err)
	}
	return nil
}

// Close closes the socket.
func (t *Tap) Close() error { return unix.Close(t.fd) }
