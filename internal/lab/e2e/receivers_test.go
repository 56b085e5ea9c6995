package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// A receiver that is not a UDP socket, such as a capture or a raw socket, sees packets
// before the kernel has cut what was joined. Whether datagrams are joined or not,
// it sees no length or checksum that is wrong; where they are not, it sees each one.
//
//	pod-a ── host a ── host b ── eth0 of pod-b, AF_PACKET
func TestReceiverOfPacketsSeesNoWrongLengthOrChecksum(t *testing.T) {
	for _, tt := range []struct {
		name                string
		flags               []string
		oneByOne, segmented size
	}{
		{"kernel VXLAN", nil, single, either},
		{"joined", []string{"--tun-gro-udp=on"}, trains, trains},
		{"not joined", []string{"--tun-gro-udp=off"}, single, single},
		{"plain engine", plainFlags, single, single},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var l *lab
			if tt.flags == nil {
				l = &lab{Topology: netlabtest.New(t, netlab.Options{}), t: t}
				testkit.Must(t, l.AddVXLAN())
			} else {
				l = newLab(t, labOptions{engine: engine{tt.name, [][]string{tt.flags}}})
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				l.expectRightPackets(t, addr, false, tt.oneByOne)
				l.expectRightPackets(t, addr, true, tt.segmented)
			})
		})
	}
}

// expectRightPackets sends datagrams from pod-a to addr in pod-b until enough of
// them have been seen there, in packets of the size wanted, and checks each packet.
// The sender passes the datagrams to its kernel one by one or, segmented, a group at
// a time with UDP_SEGMENT.
func (l *lab) expectRightPackets(t *testing.T, addr netip.Addr, segmented bool, want size) {
	t.Helper()
	link, err := l.pod(1).NS.Netlink().LinkByName("eth0")
	testkit.Must(t, err)
	server, err := listenUDP(l.pod(1).NS, netip.AddrPortFrom(addr, 0))
	testkit.Must(t, err)
	defer server.Close()
	testkit.Must(t, acquaint(l.pod(0), addr))
	client, err := dialUDP(l.pod(0).NS, addrPort(server))
	testkit.Must(t, err)
	defer client.Close()
	d := newNumbered(link.Attrs().MTU - headersOf(addr))
	if segmented {
		testkit.Must(t, setInt(client, unix.SOL_UDP, unix.UDP_SEGMENT, d.full))
	}
	r := newPacketReader(t, l.pod(1).NS, addrPort(server), d)
	const enough = 1000
	testkit.Eventually(t, fmt.Sprintf("%d datagrams seen, in %s", enough, want), func() bool {
		for range 32 {
			testkit.Must(t, d.send(client, segmented))
		}
		r.read(t)
		return r.datagrams >= enough && want.met(r.packets)
	}, func() string {
		return fmt.Sprintf("%d datagrams; packets, and those joined: %.0f", r.datagrams, r.packets)
	})
	if want.broken(r.packets) {
		t.Errorf("segmented %t: of %.0f packets %.0f held several datagrams, want %s", segmented, r.packets.calls, r.packets.trains, want)
	}
}

// headersOf is the length of the headers before the payload of a UDP packet to addr.
func headersOf(addr netip.Addr) int {
	if addr.Is6() {
		return 48
	}
	return 28
}

// numbered creates datagrams that can be recognized. Of each group all are full
// except the last, which is short.
type numbered struct {
	full    int // payload that fills the MTU
	next    uint64
	content []byte
}

const (
	numberedGroup = 8
	numberedShort = 100
)

func newNumbered(full int) *numbered {
	d := &numbered{full: full, content: make([]byte, full)}
	_, _ = io.ReadFull(content(1, int64(full)), d.content)
	return d
}

// datagram appends datagram number i to b.
func (d *numbered) datagram(b []byte, i uint64) []byte {
	n := d.full
	if i%numberedGroup == numberedGroup-1 {
		n = numberedShort
	}
	return append(binary.BigEndian.AppendUint64(b, i), d.content[:n-8]...)
}

// send sends the next group.
func (d *numbered) send(conn *net.UDPConn, segmented bool) error {
	var b []byte
	for range numberedGroup {
		b = d.datagram(b, d.next)
		d.next++
		if !segmented {
			if _, err := conn.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	if !segmented {
		return nil
	}
	_, err := conn.Write(b)
	return err
}

// packetReader sees the packets for one UDP socket on a link before they reach it,
// with the kernel's description of their checksums and segments.
type packetReader struct {
	f  *os.File
	to netip.AddrPort
	d  *numbered

	datagrams int
	packets   batches
}

func newPacketReader(t *testing.T, ns *netlab.Namespace, to netip.AddrPort, d *numbered) *packetReader {
	t.Helper()
	tap := newTapOf(t, ns, "eth0", unix.SOCK_RAW)
	testkit.Must(t, setInt(tap.f, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
	testkit.Must(t, setInt(tap.f, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bigBuffer))
	return &packetReader{f: tap.f, to: to, d: d}
}

// read checks the packets that have arrived and those that follow shortly.
func (r *packetReader) read(t *testing.T) {
	buf := make([]byte, 1<<17)
	for {
		_ = r.f.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := r.f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		testkit.Must(t, err)
		if err := r.check(buf[:n]); err != nil {
			t.Fatalf("%v\n% x", err, buf[:min(n, 100)])
		}
	}
}

// Offsets in and values of struct virtio_net_hdr, include/uapi/linux/virtio_net.h.
const (
	vnetLen       = 10
	vnetNeedsCsum = 1
	vnetUDPL4     = 5
	vnetECN       = 0x80
)

// check checks a frame with its virtio header in front, if it is for the reader's
// socket.
func (r *packetReader) check(b []byte) error {
	const ethernet = 14
	v, b := b[:vnetLen], b[vnetLen:]
	pkt := b[ethernet:]
	ipLen, length := 40, 40+int(binary.BigEndian.Uint16(pkt[4:]))
	proto := pkt[6]
	if pkt[0]>>4 == 4 {
		ipLen, length, proto = int(pkt[0]&0xf)*4, int(binary.BigEndian.Uint16(pkt[2:])), pkt[9]
	}
	if binary.BigEndian.Uint16(b[12:]) != map[bool]uint16{true: unix.ETH_P_IP, false: unix.ETH_P_IPV6}[r.to.Addr().Is4()] ||
		proto != unix.IPPROTO_UDP || binary.BigEndian.Uint16(pkt[ipLen+2:]) != r.to.Port() {
		return nil
	}
	dgram := pkt[ipLen:]
	switch {
	case length != len(pkt):
		return fmt.Errorf("the IP header has a length of %d bytes, the packet %d", length, len(pkt))
	case int(binary.BigEndian.Uint16(dgram[4:])) != len(dgram):
		return fmt.Errorf("the UDP header has a length of %d bytes, the datagram %d", binary.BigEndian.Uint16(dgram[4:]), len(dgram))
	case pkt[0]>>4 == 4 && onesSum(pkt[:ipLen]) != 0xffff:
		return errors.New("wrong checksum of the IPv4 header")
	}
	src, dst, _ := parts(pkt)
	if v[0]&vnetNeedsCsum != 0 {
		start, offset := binary.NativeEndian.Uint16(v[6:]), binary.NativeEndian.Uint16(v[8:])
		pseudo := transportSum(src, dst, unix.IPPROTO_UDP, make([]byte, len(dgram)))
		if int(start) != ethernet+ipLen || offset != 6 || binary.BigEndian.Uint16(dgram[6:]) != pseudo {
			return fmt.Errorf("checksum to be completed at %d+%d, holds %x; want %d+6, %x", start, offset, dgram[6:8], ethernet+ipLen, pseudo)
		}
	} else if transportSum(src, dst, unix.IPPROTO_UDP, dgram) != 0xffff {
		return errors.New("wrong UDP checksum")
	}
	return r.contents(dgram[8:], v[1]&^vnetECN, int(binary.NativeEndian.Uint16(v[4:])))
}

// contents checks the payload of a packet, which holds several datagrams of segment
// bytes if gso says so.
func (r *packetReader) contents(payload []byte, gso byte, segment int) error {
	count := 0
	for rest := payload; len(rest) > 0; count++ {
		one := rest
		if gso == vnetUDPL4 {
			one = rest[:min(segment, len(rest))]
		} else if gso != 0 {
			return fmt.Errorf("GSO type %d", gso)
		}
		if len(one) < 8 {
			return fmt.Errorf("a datagram of %d bytes", len(one))
		}
		i := binary.BigEndian.Uint64(one)
		if !bytes.Equal(one, r.d.datagram(nil, i)) {
			return fmt.Errorf("datagram %d has %d bytes and is not the one sent", i, len(one))
		}
		rest = rest[len(one):]
	}
	r.datagrams += count
	r.packets.calls++
	if count > 1 {
		r.packets.trains++
	}
	return nil
}
