package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// ECN field of TOS and traffic class, RFC 3168 §5.
const (
	notECT = 0
	ect1   = 1
	ect0   = 2
	ce     = 3
)

// udpPort is flannel's, and the one that a lab's daemons use.
const udpPort = 8285

// packet is an IP packet to be crafted.
type packet struct {
	src, dst netip.Addr
	tos      uint8 // or traffic class
	ttl      uint8 // or hop limit; 64 if zero
	proto    uint8 // or first next-header
	payload  []byte

	options []byte // IPv4 only, a multiple of 4 bytes
	id      uint16 // IPv4 only
	frag    uint16 // IPv4 only: flags and offset
	label   uint32 // IPv6 only
}

// bytes returns the packet with a correct header checksum.
func (p packet) bytes() []byte {
	if p.ttl == 0 {
		p.ttl = 64
	}
	var b []byte
	if p.src.Is4() {
		size := 20 + len(p.options)
		b = append(b, 4<<4|byte(size/4), p.tos)
		b = binary.BigEndian.AppendUint16(b, uint16(size+len(p.payload)))
		b = binary.BigEndian.AppendUint16(b, p.id)
		b = binary.BigEndian.AppendUint16(b, p.frag)
		b = append(b, p.ttl, p.proto, 0, 0)
		b = append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
		b = append(b, p.options...)
		binary.BigEndian.PutUint16(b[10:], ^onesSum(b))
	} else {
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(p.tos)<<20|p.label)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.payload)))
		b = append(b, p.proto, p.ttl)
		b = append(append(b, p.src.AsSlice()...), p.dst.AsSlice()...)
	}
	return append(b, p.payload...)
}

// udp returns a UDP datagram, RFC 768, with a correct checksum for the
// addresses.
func udp(from, to netip.AddrPort, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	b = append(append(b, 0, 0), data...)
	sum := ^transportSum(from.Addr(), to.Addr(), unix.IPPROTO_UDP, b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// udpPacket is an IP packet that holds one UDP datagram.
func udpPacket(from, to netip.AddrPort, data []byte) packet {
	return packet{src: from.Addr(), dst: to.Addr(), proto: unix.IPPROTO_UDP, id: 1, payload: udp(from, to, data)}
}

// transportSum is the sum over the pseudo-header (RFC 768, RFC 8200 §8.1) and b.
func transportSum(src, dst netip.Addr, proto uint8, b []byte) uint16 {
	pseudo := append(src.AsSlice(), dst.AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, proto)
	return onesSum(append(pseudo, b...))
}

// onesSum is the ones' complement sum of RFC 1071.
func onesSum(b []byte) uint16 {
	var sum uint32
	for i, v := range b {
		sum += uint32(v) << (8 * (1 - i&1))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// afterHops returns what routers make of an IP packet: the TTL less n.
func afterHops(b []byte, n uint8) []byte {
	b = bytes.Clone(b)
	if b[0]>>4 == 6 {
		b[7] -= n
		return b
	}
	b[8] -= n
	header := b[:int(b[0]&0x0f)*4]
	header[10], header[11] = 0, 0
	binary.BigEndian.PutUint16(header[10:], ^onesSum(header))
	return b
}

// sendRaw sends an IP packet as it is from ns.
func sendRaw(t testing.TB, ns *netlab.Namespace, dst netip.Addr, packets ...[]byte) {
	t.Helper()
	if err := ns.Do(func() error {
		family, to := unix.AF_INET, unix.Sockaddr(nil)
		if dst.Is4() {
			to = &unix.SockaddrInet4{Addr: dst.As4()}
		} else {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, b := range packets {
			if err := unix.Sendto(fd, b, 0, to); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: send a packet to %s: %v", ns, dst, err)
	}
}

// inject sends datagrams to the tunnel's port on host number to, from a socket
// of its own on host number from. tos is that of the outer header.
func (l *lab) inject(from, to int, tos uint8, payloads ...[]byte) {
	l.t.Helper()
	src, dst := l.underlay(from), netip.AddrPortFrom(l.underlay(to), udpPort)
	conn, err := listenUDP(l.Hosts[from].NS, netip.AddrPortFrom(src, 0))
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close()
	level, opt := unix.IPPROTO_IP, unix.IP_TOS
	if src.Is6() {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if err := setInt(conn, level, opt, int(tos)); err != nil {
		l.t.Fatal(err)
	}
	for _, b := range payloads {
		if _, err := conn.WriteToUDPAddrPort(b, dst); err != nil {
			l.t.Fatal(err)
		}
	}
}

// tap sees the IP packets that arrive on a link.
type tap struct {
	t    testing.TB
	f    *os.File
	name string
}

// newTap listens on a link of ns until the test ends. It reads IP packets.
func newTap(t testing.TB, ns *netlab.Namespace, link string) *tap {
	t.Helper()
	// SOCK_DGRAM: packets begin with the IP header.
	return newTapOf(t, ns, link, unix.SOCK_DGRAM)
}

// newTapOf is newTap with a packet socket of the given type.
func newTapOf(t testing.TB, ns *netlab.Namespace, link string, kind int) *tap {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) {
		l, err := ns.Netlink().LinkByName(link)
		if err != nil {
			return err
		}
		// Protocol 0: nothing arrives before bind, so nothing of other links.
		fd, err = unix.Socket(unix.AF_PACKET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	})
	p := &tap{t: t, f: os.NewFile(uintptr(fd), "tap"), name: ns.String() + " " + link}
	if p.f != nil {
		t.Cleanup(func() { p.f.Close() })
	}
	if err != nil {
		t.Fatalf("tap %s: %v", p.name, err)
	}
	return p
}

// next returns the first packet from now on that wanted holds for. If none
// comes in time it fails the test and returns nil.
func (p *tap) next(what string, wanted func(b []byte) bool) []byte {
	p.t.Helper()
	_ = p.f.SetReadDeadline(time.Now().Add(testkit.Patience))
	buf := make([]byte, 1<<16)
	for {
		n, err := p.f.Read(buf)
		if err != nil {
			p.t.Errorf("tap %s: no %s: %v", p.name, what, err)
			return nil
		}
		if wanted(buf[:n]) {
			return buf[:n]
		}
	}
}

// source returns the source address of an IP packet, the zero Addr of others.
func source(b []byte) netip.Addr {
	var a netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		a, _ = netip.AddrFromSlice(b[12:16])
	case len(b) >= 40 && b[0]>>4 == 6:
		a, _ = netip.AddrFromSlice(b[8:24])
	}
	return a
}

// tunnelled returns what b carries if it is a datagram of the tunnel, and its
// TOS or traffic class.
func tunnelled(b []byte) (inner []byte, tos uint8, ok bool) {
	at := 20
	switch {
	case len(b) >= 28 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP:
		at, tos = int(b[0]&0x0f)*4, b[1]
	case len(b) >= 48 && b[0]>>4 == 6 && b[6] == unix.IPPROTO_UDP:
		at, tos = 40, b[0]<<4|b[1]>>4
	default:
		return nil, 0, false
	}
	if binary.BigEndian.Uint16(b[at+2:]) != udpPort {
		return nil, 0, false
	}
	return b[at+8:], tos, true
}
