package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Lengths of headers, in bytes.
const (
	ethernetHeaderLen = 14
	vxlanHeaderLen    = 8
)

// Ports of the backends, which identify the content of a datagram.
const (
	udpBackendPort = 8285
	vxlanPort      = 8472
)

// tap is a packet socket on an interface, which sees packets in both directions.
type tap struct {
	place
	fd       int
	ethernet bool
}

func newTap(p place) (*tap, error) {
	link, err := p.ns.Netlink().LinkByName(p.link)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", p.ns, p.link, err)
	}
	t := &tap{place: p, fd: -1, ethernet: len(link.Attrs().HardwareAddr) > 0}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	err = p.ns.Do(func() error {
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		return unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.close()
		return nil, fmt.Errorf("%s: listen on %s: %w", p.ns, p.link, err)
	}
	return t, nil
}

func (t *tap) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
}

// find returns the echo request with the number seq, whatever headers it has on this
// interface.
func (t *tap) find(from, to netip.Addr, seq uint16) (sighting, error) {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(t.fd, buf, 0)
		if err != nil {
			return sighting{}, fmt.Errorf("%s: the request that was answered was not captured on %s: %w", t.ns, t.link, err)
		}
		frame := buf[:n]
		for at := 0; at+tourSize <= n; at++ {
			if isRequest(frame[at:], from, to, seq) {
				return sighting{t.place, append([]byte(nil), frame...), t.ethernet}, nil
			}
		}
	}
}

// header is a part of a packet: its bytes, and what they mean.
type header struct {
	name   string
	bytes  []byte
	fields []string
}

// dissect describes a packet header by header, from the outside to the inside.
func dissect(frame []byte, ethernet bool) (string, error) {
	var all []header
	rest := frame
	for ethernet || len(rest) > 0 {
		var h header
		var next func([]byte) (header, bool)
		h, ethernet, next = parseHeader(rest, ethernet)
		if h.bytes == nil {
			return "", errors.New("packet of an unknown format")
		}
		all, rest = append(all, h), rest[len(h.bytes):]
		if next == nil {
			continue
		}
		more, frameFollows := next(rest)
		all, rest, ethernet = append(all, more), rest[len(more.bytes):], frameFollows
	}
	var b strings.Builder
	for _, h := range all {
		fmt.Fprintf(&b, "    %-9s %s\n", h.name, hexOf(h.bytes))
		for _, f := range h.fields {
			fmt.Fprintf(&b, "              %s\n", f)
		}
	}
	return b.String(), nil
}

// parseHeader returns the first header of a packet, whether an Ethernet header follows,
// and the parser of the rest if that is not IP.
func parseHeader(p []byte, ethernet bool) (h header, ethernetNext bool, next func([]byte) (header, bool)) {
	if ethernet {
		if len(p) < ethernetHeaderLen {
			return header{}, false, nil
		}
		return header{"Ethernet", p[:ethernetHeaderLen], []string{
			fmt.Sprintf("from %s to %s, type 0x%04x", net.HardwareAddr(p[6:12]), net.HardwareAddr(p[:6]), be16(p[12:])),
		}}, false, nil
	}
	src, dst, protocol, payload, ok := parseIPv4(p)
	if !ok || len(payload) < udpHeaderLen+vxlanHeaderLen { // no packet of the tour is shorter
		return header{}, false, nil
	}
	h = header{"IPv4", p[:int(p[0]&0xf)*4], []string{
		fmt.Sprintf("%s → %s, %d bytes, TTL %d, protocol %s, checksum 0x%04x", src, dst, be16(p[2:]), p[8], protocolName(protocol), be16(p[10:])),
	}}
	if protocol == unix.IPPROTO_UDP {
		return h, false, parseUDP
	}
	return h, false, parseICMP
}

// parseUDP returns a UDP header, together with the VXLAN header if there is one, and
// whether an Ethernet header follows.
func parseUDP(p []byte) (header, bool) {
	h := header{"UDP", p[:udpHeaderLen], []string{
		fmt.Sprintf("port %d → %d, %d bytes, checksum 0x%04x", be16(p), be16(p[2:]), be16(p[4:]), be16(p[6:])),
	}}
	if be16(p[2:]) != vxlanPort {
		return h, false
	}
	h.name, h.bytes = "UDP VXLAN", p[:udpHeaderLen+vxlanHeaderLen]
	h.fields = append(h.fields, fmt.Sprintf("VXLAN flags 0x%02x, network (VNI) %d", p[8], be32(p[12:])>>8))
	return h, true
}

func parseICMP(p []byte) (header, bool) {
	return header{"ICMP", p, []string{fmt.Sprintf("echo request, identifier %d, number %d", be16(p[4:]), be16(p[6:]))}}, false
}

func protocolName(p byte) string {
	if p == unix.IPPROTO_UDP {
		return "UDP"
	}
	return "ICMP"
}

// hexOf returns bytes in hexadecimal, 16 on a line.
func hexOf(p []byte) string {
	var lines []string
	for len(p) > 0 {
		n := min(len(p), 16)
		lines = append(lines, fmt.Sprintf("% x", p[:n]))
		p = p[n:]
	}
	return strings.Join(lines, "\n              ")
}

func be16(p []byte) uint16 { return binary.BigEndian.Uint16(p) }
func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }
