package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// witness listens on the wire of the second host and reports what it saw of the
// packets from the client pod.
type witness struct {
	fd   int
	from netip.Addr
	to   netip.Addr
}

// newWitness starts listening for packets from one pod to the other.
func newWitness(c *Connection) (*witness, error) {
	host := c.topo.Hosts[1].NS
	w := &witness{fd: -1, from: c.Client.Addr, to: c.Server.Addr}
	eth0, err := host.Netlink().LinkByName(netlab.UnderlayLink)
	if err != nil {
		return nil, fmt.Errorf("%s: find %s: %w", host, netlab.UnderlayLink, err)
	}
	protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})
	err = host.Do(func() error {
		// SOCK_DGRAM: packets come without their Ethernet header.
		w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: eth0.Attrs().Index})
	})
	if err != nil {
		w.close()
		return nil, fmt.Errorf("%s: listen on %s: %w", host, netlab.UnderlayLink, err)
	}
	return w, nil
}

func (w *witness) close() {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
}

// testimony describes the largest packet seen that carries one of the pod's packets.
func (w *witness) testimony() (string, error) {
	buf, largest, said := make([]byte, 64<<10), 0, ""
	for {
		n, _, err := unix.Recvfrom(w.fd, buf, unix.MSG_TRUNC)
		if err != nil {
			break // EAGAIN: no more packets
		}
		if s := w.describe(buf[:min(n, len(buf))]); s != "" && n > largest {
			largest, said = n, s
		}
	}
	if said == "" {
		return "", fmt.Errorf("no packet from %s to %s inside UDP was captured on %s", w.from, w.to, netlab.UnderlayLink)
	}
	return said, nil
}

// describe describes an IPv4 packet if it is a UDP datagram that holds
// exactly one IPv4 packet from one pod to the other.
func (w *witness) describe(outer []byte) string {
	src, dst, protocol, datagram, ok := parseIPv4(outer)
	if !ok || protocol != unix.IPPROTO_UDP || len(datagram) < udpHeaderLen {
		return ""
	}
	inner := datagram[udpHeaderLen:]
	innerSrc, innerDst, _, _, ok := parseIPv4(inner)
	if !ok || innerSrc != w.from || innerDst != w.to {
		return ""
	}
	sport, dport := binary.BigEndian.Uint16(datagram), binary.BigEndian.Uint16(datagram[2:])
	return fmt.Sprintf("%d bytes, UDP %s → %s, containing only %d bytes, IPv4 %s → %s", len(outer),
		netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), len(inner), innerSrc, innerDst)
}

const udpHeaderLen = 8

// parseIPv4 parses a packet whose length must match its header.
func parseIPv4(p []byte) (src, dst netip.Addr, protocol byte, payload []byte, ok bool) {
	if len(p) < ipv4HeaderLen || p[0]>>4 != 4 || int(binary.BigEndian.Uint16(p[2:])) != len(p) {
		return src, dst, 0, nil, false
	}
	header := int(p[0]&0xf) * 4
	if header < ipv4HeaderLen || header > len(p) {
		return src, dst, 0, nil, false
	}
	src, dst = netip.AddrFrom4([4]byte(p[12:16])), netip.AddrFrom4([4]byte(p[16:20]))
	return src, dst, p[9], p[header:], true
}
