//go:build amd64

package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// interopEngines are the ones that host a runs towards stock flannel.
var interopEngines = []engine{offloadEngine, plainEngine}

// pod-a ── host a ──────────── host b ── pod-b
//
//	twilld             stock flannel
func TestPodsOfStockFlannelTalkWithOurs(t *testing.T) {
	t.Parallel()
	for _, wire := range wires {
		for _, e := range interopEngines {
			t.Run(string(wire)+" "+e.name, func(t *testing.T) {
				t.Parallel()
				l := newStockLab(t, e, netlab.Options{Wire: wire})
				a, b := l.pod(0), l.pod(1)
				for _, way := range []struct{ from, to *netlab.Pod }{{a, b}, {b, a}} {
					if err := ping(way.from, way.to.Addr, 1472); err != nil {
						t.Errorf("ping of full size from %s: %v", way.from.NS, err)
					}
					if err := ping(way.from, way.to.Addr, 1473); !errors.Is(err, unix.EMSGSIZE) {
						t.Errorf("ping one byte larger from %s: %v, want EMSGSIZE", way.from.NS, err)
					}
					for _, flows := range []int{1, 16} {
						s := streams{flows: flows, up: 4 << 20, down: 4 << 20}
						if err := s.run(way.from, way.to, way.to.Addr); err != nil {
							t.Errorf("TCP, %d flows from %s: %v", flows, way.from.NS, err)
						}
						// One at a time: stock flannel's socket does not hold much.
						d := datagrams{flows: flows, count: 320 / flows, window: 1, sizes: []int{8, 1444, 700, 4000}}
						if err := d.run(way.from, way.to, way.to.Addr); err != nil {
							t.Errorf("UDP, %d flows from %s: %v", flows, way.from.NS, err)
						}
					}
				}
				l.expectNoDrops(t)
			})
		}
	}
}

// expectNoDrops fails the test if host a dropped a packet on its way in: stock
// flannel sends nothing that twilld does not accept.
func (l *stockLab) expectNoDrops(t *testing.T) {
	t.Helper()
	if drops := l.daemons[0].status().Drops.RX; len(drops) > 0 {
		t.Errorf("host a dropped what stock flannel sent: %v", drops)
	}
}

// pod-a ── host a ─┬─ host b ── pod-b    stock flannel
//
//	twilld   └─ host c ── pod-c    stock flannel
func TestLeaseOfAStockNodeComesAndGoes(t *testing.T) {
	t.Parallel()
	for _, e := range interopEngines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			l := newStockLab(t, e, netlab.Options{Hosts: 3})
			a, c := l.pod(0), l.pod(2)
			steady := l.trickle() // between a and b
			for range 2 {
				replace(t, l.leaseFile, stockLeases(3))
				l.daemons[0].seesLeases("one node more", 3)
				for _, way := range [][2]*netlab.Pod{{a, c}, {c, a}} {
					if err := ping(way[0], way[1].Addr, 1472); err != nil {
						t.Errorf("ping from %s: %v", way[0].NS, err)
					}
				}
				if err := (streams{flows: 4, up: 1 << 20, down: 1 << 20}).run(a, c, c.Addr); err != nil {
					t.Errorf("TCP: %v", err)
				}
				replace(t, l.leaseFile, stockLeases(2))
				l.daemons[0].seesLeases("one node fewer", 2)
				if err := pingOnce(c, a.Addr); err == nil {
					t.Error("host a accepts packets of a node without a lease")
				}
			}
			if err := steady.stop(); err != nil {
				t.Errorf("traffic with the other node: %v", err)
			}
		})
	}
}

// The same packet from a pod behind twilld and from one behind stock flannel
// is the same datagram. Stock flannel decrements the TTL once more.
//
//	pod-a ── host a, twilld ────────┬── tap ─ host b
//	pod-c ── host c, stock flannel ─┘
func TestDatagramsAreThoseOfStockFlannel(t *testing.T) {
	t.Parallel()
	for _, e := range interopEngines {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			e.flags = [][]string{append(slices.Clone(e.flags[0]), "--source-ports=off")}
			l := newStockLab(t, e, netlab.Options{Hosts: 3})
			replace(t, l.leaseFile, stockLeases(3))
			l.daemons[0].seesLeases("all nodes", 3)
			outer := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink)
			for name, p := range stockPackets(l.pod(0), l.pod(1)) {
				// From the address of pod-a also where it comes from pod-c.
				ours := l.datagram(t, outer, name, 0, p)
				p.ttl++
				stocks := l.datagram(t, outer, name, 2, p)
				if ours == nil || stocks == nil {
					continue
				}
				p.ttl--
				if inner := afterHops(p.bytes(), 1); !bytes.Equal(ours[28:], inner) {
					t.Errorf("%s: the datagram carries\n% x\nwant\n% x", name, ours[28:], inner)
				}
				if !bytes.Equal(comparable(ours), comparable(stocks)) {
					t.Errorf("%s: twilld sends\n% x\nstock flannel\n% x", name, ours, stocks)
				}
			}
		})
	}
}

// stockPackets are packets that stock flannel forwards, with a TTL.
func stockPackets(from, to *netlab.Pod) map[string]packet {
	packets := map[string]packet{
		"full size": udpPacket(netip.AddrPortFrom(from.Addr, 1000), netip.AddrPortFrom(to.Addr, 2000), bytes.Repeat([]byte("MTU "), 361)),
	}
	for name, p := range oddPackets(from, to) {
		// Stock flannel does not support ECN: it leaves the outer field empty.
		if p.src.Is4() && p.tos&ce == notECT {
			packets[name] = p
		}
	}
	for name, p := range packets {
		if p.ttl == 0 {
			p.ttl = 64
		}
		packets[name] = p
	}
	return packets
}

// datagram sends p from the pod of host number i and returns the datagram, with
// its IP header, that host sends for it.
func (l *stockLab) datagram(t *testing.T, outer *tap, name string, i int, p packet) []byte {
	t.Helper()
	h := l.Hosts[i]
	sendRaw(t, h.Pods[0].NS, p.dst, p.bytes())
	return outer.next(name+" of host "+h.Letter, func(b []byte) bool {
		inner, _, ok := tunnelled(b)
		return ok && source(b) == h.Addr && source(inner) == p.src
	})
}

// comparable returns a datagram without what differs between two hosts: the IP
// identification and the DF bit, which stock flannel leaves to the system, the
// source address and the checksums.
func comparable(b []byte) []byte {
	b = bytes.Clone(b)
	for _, field := range [][2]int{{4, 8}, {10, 12}, {12, 16}, {26, 28}} {
		clear(b[field[0]:field[1]])
	}
	if port := binary.BigEndian.Uint16(b[20:]); port != udpPort {
		return nil // not what stock flannel's peers may expect
	}
	return b
}
