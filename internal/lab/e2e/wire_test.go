package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// oddPackets are packets that a data plane could be tempted to change, from
// one pod to the other.
func oddPackets(from, to *netlab.Pod) map[string]packet {
	v4 := func() packet {
		return udpPacket(netip.AddrPortFrom(from.Addr, 1000), netip.AddrPortFrom(to.Addr, 2000), []byte("thirteen bytes"))
	}
	v6 := func() packet {
		return udpPacket(netip.AddrPortFrom(from.Addr6, 1000), netip.AddrPortFrom(to.Addr6, 2000), []byte("thirteen bytes"))
	}
	with := func(p packet, change func(*packet)) packet {
		change(&p)
		return p
	}
	fragment := bytes.Repeat([]byte("fragment"), 64)
	// Extension headers, RFC 8200 §4: next header, length in eights beyond
	// the first, and a PadN option (1, 4 bytes).
	extension := func(next uint8, payload []byte) []byte {
		return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, payload...)
	}
	return map[string]packet{
		"dscp EF":             with(v4(), func(p *packet) { p.tos = 46 << 2 }),
		"dscp AF41, ECT(1)":   with(v4(), func(p *packet) { p.tos = 34<<2 | ect1 }),
		"CE":                  with(v4(), func(p *packet) { p.tos = ce }),
		"low TTL":             with(v4(), func(p *packet) { p.ttl = 3 }),
		"DF":                  with(v4(), func(p *packet) { p.frag = 0x4000 }),
		"options":             with(v4(), func(p *packet) { p.options = []byte{1, 0x5e, 4, 0xab, 0xcd, 1, 1, 0} }), // RFC 4727 experiment among no-ops
		"first fragment":      with(v4(), func(p *packet) { p.id, p.frag, p.payload = 77, 0x2000, append(p.payload[:8:8], fragment...) }),
		"last fragment":       with(v4(), func(p *packet) { p.id, p.frag, p.payload = 77, 65, fragment[:100] }),
		"no UDP checksum":     with(v4(), func(p *packet) { p.payload[6], p.payload[7] = 0, 0 }),
		"wrong UDP checksum":  with(v4(), func(p *packet) { p.payload[6] ^= 0x55 }),
		"wrong UDP length":    with(v4(), func(p *packet) { p.payload[5]-- }),
		"experimental":        with(v4(), func(p *packet) { p.proto = 253 }),
		"no payload":          with(v4(), func(p *packet) { p.proto, p.payload = 253, nil }),
		"half a TCP header":   with(v4(), func(p *packet) { p.proto, p.payload = unix.IPPROTO_TCP, p.payload[:10] }),
		"v6 traffic class":    with(v6(), func(p *packet) { p.tos, p.label = 46<<2|ect0, 0xbeef5 }),
		"v6 low hop limit":    with(v6(), func(p *packet) { p.ttl = 3 }),
		"v6 wrong checksum":   with(v6(), func(p *packet) { p.payload[6] ^= 0x55 }),
		"v6 destination opts": with(v6(), func(p *packet) { p.proto, p.payload = 60, extension(unix.IPPROTO_UDP, p.payload) }),
		"v6 hop-by-hop":       with(v6(), func(p *packet) { p.proto, p.payload = 0, extension(unix.IPPROTO_UDP, p.payload) }),
		"v6 first fragment": with(v6(), func(p *packet) {
			p.proto, p.payload = 44, append([]byte{unix.IPPROTO_UDP, 0, 0, 1, 0, 0, 0, 9}, fragment...)
		}),
		"v6 last fragment": with(v6(), func(p *packet) {
			p.proto, p.payload = 44, append([]byte{unix.IPPROTO_UDP, 0, 2, 0, 0, 0, 0, 9}, fragment[:100]...)
		}),
		"v6 no next header": with(v6(), func(p *packet) { p.proto, p.payload = 59, nil }),
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	sent       TTL − 1            TTL − 1   seen
func TestPacketArrivesAsItWasSentButForTwoHops(t *testing.T) {
	t.Parallel()
	forUnderlays(t, labOptions{}, func(t *testing.T, l *lab) {
		arrivals := newTap(t, l.pod(1).NS, "eth0")
		for name, p := range oddPackets(l.pod(0), l.pod(1)) {
			sent := p.bytes()
			sendRaw(t, l.pod(0).NS, p.dst, sent)
			got := arrivals.next(name, func(b []byte) bool { return source(b) == p.src })
			if want := afterHops(sent, 2); !bytes.Equal(got, want) {
				t.Errorf("%s: got\n% x\nwant\n% x", name, got, want)
			}
		}
	})
}

// pod-a ── host a ────── tap ─ host b ── pod-b
func TestDatagramIsTheInnerPacketAndNothingElse(t *testing.T) {
	t.Parallel()
	forUnderlays(t, labOptions{flags: []string{"--source-ports=off"}}, func(t *testing.T, l *lab) {
		outer := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink)
		for name, p := range oddPackets(l.pod(0), l.pod(1)) {
			sendRaw(t, l.pod(0).NS, p.dst, p.bytes())
			var tos uint8
			datagram := outer.next(name, func(b []byte) bool {
				inner, outerTOS, ok := tunnelled(b)
				tos = outerTOS
				return ok && source(inner) == p.src
			})
			if datagram == nil {
				continue
			}
			inner, _, _ := tunnelled(datagram)
			if want := afterHops(p.bytes(), 1); !bytes.Equal(inner, want) {
				t.Errorf("%s: the datagram carries\n% x\nwant\n% x", name, inner, want)
			}
			if want := p.tos & ce; tos != want {
				t.Errorf("%s: outer TOS %#02x, want the inner ECN field alone, %#02x", name, tos, want)
			}
			if from := binary.BigEndian.Uint16(datagram[len(datagram)-len(inner)-8:]); from != udpPort {
				t.Errorf("%s: sent from port %d, stock flannel uses %d", name, from, udpPort)
			}
		}
	})
}

// The outer checksum must not hide that the packet was damaged before: with offloads it
// could easily be passed on with a correct checksum.
//
// pod-a, bad checksums ── host a ──────────── host b ── pod-b
func TestDamageBeforeTheTunnelIsStillSeenByThePod(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{}, func(t *testing.T, l *lab) {
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			server, err := listenUDP(l.pod(1).NS, netip.AddrPortFrom(addr, 0))
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if err := acquaint(l.pod(0), addr); err != nil {
				t.Fatal(err)
			}
			errs := map[bool]string{true: "UdpInCsumErrors", false: "Udp6InCsumErrors"}[addr.Is4()]
			before := counters(t, l.pod(1).NS)[errs]

			const count = 400
			var packets [][]byte
			damaged := make(map[int]bool) // every fourth
			for i := range count {
				p := udpPacket(netip.AddrPortFrom(ofFamily(l.pod(0), addr), 1000), addrPort(server), binary.BigEndian.AppendUint32(nil, uint32(i)))
				p.id = uint16(i + 1)
				// One checksum in 65,536 happens to be that of a packet whose sum is
				// left to the datagram's: the node then completes it.
				partial := transportSum(p.src, p.dst, p.proto, make([]byte, len(p.payload)))
				if i%4 == 3 && binary.BigEndian.Uint16(p.payload[6:]) != partial {
					p.payload[8] ^= 0x55 // the first byte behind the UDP header
					damaged[i] = true
				}
				packets = append(packets, p.bytes())
			}
			sendRaw(t, l.pod(0).NS, addr, packets...)
			for i := range count {
				if damaged[i] {
					continue
				}
				_ = server.SetReadDeadline(time.Now().Add(testkit.Patience))
				buf := make([]byte, 8)
				if n, err := server.Read(buf); err != nil || n != 4 || binary.BigEndian.Uint32(buf) != uint32(i) {
					t.Fatalf("datagram %d: % x, %v", i, buf[:n], err)
				}
			}
			testkit.Eventually(t, "pod-b's kernel drops the damaged ones", func() bool {
				return counters(t, l.pod(1).NS)[errs] == before+uint64(len(damaged))
			})
		})
	})
}

// IP options are between the fields that the segments of a super-packet share and those
// that they do not.
//
// pod-a, TCP with IP options ── host a ──────────── host b ── pod-b
func TestTCPWithIPOptionsArrives(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		listener, err := l.pod(1).NS.Listen("tcp", netip.AddrPortFrom(l.pod(1).Addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		client, server, err := connect(listener, l.pod(0))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		defer server.Close()
		raw, err := client.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptString(int(fd), unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x5e\x04\xab\xcd\x01\x01\x00")
		}); cerr != nil || err != nil {
			t.Fatalf("set IP_OPTIONS: %v %v", cerr, err)
		}
		arrivals := newTap(t, l.pod(1).NS, "eth0")
		if err := pump(client, server, 1, 8<<20); err != nil {
			t.Error(err)
		}
		arrivals.next("segment with 28 bytes of IPv4 header", func(b []byte) bool {
			return len(b) > 1000 && b[0] == 0x47 && b[9] == unix.IPPROTO_TCP
		})
	})
}
