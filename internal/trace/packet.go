// Package trace follows a packet from a pod of one node to a pod of another: what the
// tables of both nodes would do with it, as a pure function of what was read from them, and
// where packets with a mark are seen on their way.
//
//	Host ── Sending, Receiving ──► steps ─┐
//	Probes ──► Tap ──► sights ────────────┼─► Report ──► page, JSON
//	counters before and after ────────────┘
//
// It changes nothing but the counters that the probes pass.
package trace

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/echo"
)

// Protocols of a packet.
const (
	ICMP = "icmp" // echo request, of either version of ICMP
	TCP  = "tcp"  // SYN
	UDP  = "udp"
)

// Packet is the packet whose way is traced, the first of a connection.
type Packet struct {
	From  netip.Addr `json:"from"`
	To    netip.Addr `json:"to"`
	Proto string     `json:"protocol"`
	Port  uint16     `json:"port,omitempty"` // of the destination
}

// ParseProto sets protocol and port from the words of a command line: none, "icmp",
// or "tcp" or "udp" and a port.
func (p *Packet) ParseProto(words []string) error {
	p.Proto = ICMP
	switch {
	case len(words) == 0 || len(words) == 1 && words[0] == ICMP:
		return nil
	case words[0] != TCP && words[0] != UDP:
		return fmt.Errorf("%q: want icmp, tcp PORT or udp PORT", words[0])
	case len(words) != 2:
		return fmt.Errorf("want one port after %s", words[0])
	}
	port, err := strconv.ParseUint(words[1], 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("port %q: want 1 to 65535", words[1])
	}
	p.Proto, p.Port = words[0], uint16(port)
	return nil
}

// Words is the inverse of ParseProto.
func (p *Packet) Words() []string {
	if p.Port == 0 {
		return []string{p.Proto}
	}
	return []string{p.Proto, strconv.Itoa(int(p.Port))}
}

// String describes the packet.
func (p *Packet) String() string {
	text := fmt.Sprintf("%s from %s to %s", p.Proto, p.From, p.To)
	if p.Port != 0 {
		text += fmt.Sprintf(" port %d", p.Port)
	}
	return text
}

// firewall returns the packet for the firewall of a host that it enters by in and leaves
// by out.
func (p *Packet) firewall(in, out string) doctor.Packet {
	proto := p.Proto
	if proto == ICMP && p.To.Is6() {
		proto = "ipv6-icmp"
	}
	return doctor.Packet{In: in, Out: out, Src: p.From, Dst: p.To, Proto: proto, Port: int(p.Port)}
}

// Sizes of headers without options in bytes (RFC 9293, RFC 768), and of the smallest probe
// of UDP and ICMP without the IP header.
const (
	tcpHeader = 20
	udpHeader = 8
	smallData = 24
)

// Mark recognizes probes: 32 bits, of which the lowest is 0. Full-size probes have it 1.
type Mark uint32

// probe returns a probe of size bytes, IP header included; 0: the smallest. Its mark is
// at the beginning of the data, or the sequence number of a TCP SYN.
func (p *Packet) probe(m Mark, size int) []byte {
	header := echo.IPHeaderLen(p.To)
	if small := header + smallData; size < small {
		size = small
	}
	proto, check := uint8(unix.IPPROTO_ICMP), 2
	switch {
	case p.Proto == TCP:
		proto, check, size = unix.IPPROTO_TCP, encap.ChecksumOffset(unix.IPPROTO_TCP), header+tcpHeader
	case p.Proto == UDP:
		proto, check = unix.IPPROTO_UDP, encap.ChecksumOffset(unix.IPPROTO_UDP)
	case p.To.Is6():
		proto = unix.IPPROTO_ICMPV6
	}
	b := make([]byte, size)
	if p.To.Is6() {
		b[0], b[6], b[7] = 6<<4, proto, 64 // RFC 8200 section 3
		binary.BigEndian.PutUint16(b[4:], uint16(size-header))
		copy(b[8:], p.From.AsSlice())
		copy(b[24:], p.To.AsSlice())
	} else {
		b[0], b[6], b[8], b[9] = 4<<4|5, 1<<6, 64, proto // RFC 791 section 3.1; DF. The kernel adds the checksum, raw(7).
		binary.BigEndian.PutUint16(b[2:], uint16(size))
		copy(b[12:], p.From.AsSlice())
		copy(b[16:], p.To.AsSlice())
	}
	t := b[header:]
	id := uint16(m>>16) | 0x8000 // also the source port, above those of well-known services
	switch p.Proto {
	case TCP:
		binary.BigEndian.PutUint16(t[0:], id)
		binary.BigEndian.PutUint16(t[2:], p.Port)
		binary.BigEndian.PutUint32(t[4:], uint32(m))
		t[12], t[13] = 5<<4, 2 // no options; SYN
		binary.BigEndian.PutUint16(t[14:], 0xffff)
	case UDP:
		binary.BigEndian.PutUint16(t[0:], id)
		binary.BigEndian.PutUint16(t[2:], p.Port)
		binary.BigEndian.PutUint16(t[4:], uint16(len(t)))
		binary.BigEndian.PutUint32(t[udpHeader:], uint32(m))
	default:
		t[0] = 8 // echo request
		if p.To.Is6() {
			t[0] = 128
		}
		binary.BigEndian.PutUint16(t[4:], id)
		binary.BigEndian.PutUint32(t[echo.HeaderLen:], uint32(m))
	}
	if proto != unix.IPPROTO_ICMP { // whose checksum has no pseudo header
		binary.BigEndian.PutUint16(t[check:], p.pseudoSum(proto, len(t)))
	}
	encap.CompleteChecksum(b, header, check)
	return b
}

// pseudoSum is the sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func (p *Packet) pseudoSum(proto uint8, length int) uint16 {
	sum := uint32(proto) + uint32(length)
	for _, a := range []netip.Addr{p.From, p.To} {
		for b := a.AsSlice(); len(b) > 0; b = b[2:] {
			sum += uint32(binary.BigEndian.Uint16(b))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// place is where the mark stands in a packet, counted from the header of the outermost
// IP packet.
type place struct {
	offset int
	outer  bool // in what the backend has encapsulated
	answer bool
}

// places returns where marks of probes and of the answers to them may stand, for a backend
// that puts overhead bytes before a packet. A pod that does not listen on a UDP port answers
// with an ICMP error, which quotes the packet (RFC 792, RFC 4443 section 3).
func (p *Packet) places(overhead int) (all []place) {
	header := echo.IPHeaderLen(p.To)
	mark, answer := header+udpHeader, header+udpHeader // as long as that of ICMP
	if p.Proto == TCP {
		mark = header + 4   // the sequence number
		answer = header + 8 // the acknowledgement is the next one
	}
	quoted := header + echo.HeaderLen + mark
	add := func(at int, outer bool) {
		all = append(all, place{at + mark, outer, false}, place{at + answer, outer, true})
		if p.Proto == UDP {
			all = append(all, place{at + quoted, outer, true})
		}
	}
	if add(0, false); overhead > 0 {
		add(overhead, true)
	}
	return all
}

// find returns where in b the mark stands, if it does. Answers are recognized by their
// addresses where they have the same place.
func (p *Packet) find(b []byte, m Mark, overhead int) (at place, full, ok bool) {
	for _, at = range p.places(overhead) {
		if len(b) < at.offset+4 {
			continue
		}
		found := binary.BigEndian.Uint32(b[at.offset:])
		inner := b
		if at.outer {
			if !isUDP(b) {
				continue // an ICMP error quotes a packet after as many bytes
			}
			inner = b[overhead:]
		}
		if Mark(found&^1) == m && p.answers(inner) == at.answer {
			return at, found&1 == 1 && p.Proto != TCP, true
		}
	}
	return place{}, false, false
}

// answers reports whether a packet comes from the far end itself. Of ICMP errors only "port
// unreachable" does: others come from routers on the way, from rules that reject, and from
// twilld in the name of the far end.
func (p *Packet) answers(b []byte) bool {
	at, size, header, proto := 12, 4, 20, 9
	kind, code := byte(3), byte(3)
	if p.To.Is6() {
		at, size, header, proto = 8, 16, 40, 6
		kind, code = 1, 4
	}
	if len(b) < header+2 || string(b[at:at+size]) != string(p.To.AsSlice()) || string(b[at+size:at+2*size]) != string(p.From.AsSlice()) {
		return false
	}
	isICMP := b[proto] == unix.IPPROTO_ICMP || b[proto] == unix.IPPROTO_ICMPV6
	return !isICMP || p.Proto == ICMP || b[header] == kind && b[header+1] == code
}

// isUDP reports whether an IP packet, of which b has at least the header, is UDP.
func isUDP(b []byte) bool {
	if b[0]>>4 == 6 {
		return b[6] == unix.IPPROTO_UDP
	}
	return b[9] == unix.IPPROTO_UDP
}
