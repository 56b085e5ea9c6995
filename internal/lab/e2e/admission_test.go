package e2e

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// intrusion is a datagram for the port of the tunnel on host b.
type intrusion struct {
	name    string
	from    int // number of the host that sends it
	payload []byte
	reason  string // for which it is dropped; empty: it passes
}

// innerPacket is a packet as it may stand in a datagram.
func innerPacket(src, dst string) []byte {
	return udpPacket(netip.AddrPortFrom(netip.MustParseAddr(src), 1000), netip.AddrPortFrom(netip.MustParseAddr(dst), 2000), []byte("inner")).bytes()
}

// broken are payloads that are not IP packets, whatever the source check is.
func broken(from int) []intrusion {
	good4, good6 := innerPacket("10.5.1.2", "10.5.2.2"), innerPacket("fd00:10:5:1::2", "fd00:10:5:2::2")
	change := func(b []byte, at int, v byte) []byte {
		b = bytes.Clone(b)
		b[at] = v
		return b
	}
	cases := map[string][]byte{
		"nothing":                    {},
		"one byte":                   {0x45},
		"half an IPv4 header":        good4[:10],
		"half an IPv6 header":        good6[:30],
		"IP version 5":               change(good4, 0, 0x55),
		"IPv4 header of 16 bytes":    change(good4, 0, 0x44),
		"IPv4 header past the end":   change(good4, 0, 0x4f),
		"IPv4 longer than it says":   append(bytes.Clone(good4), 0),
		"IPv4 shorter than it says":  good4[:len(good4)-1],
		"IPv6 longer than it says":   append(bytes.Clone(good6), 0),
		"IPv6 shorter than it says":  good6[:len(good6)-1],
		"zeros of a packet's length": make([]byte, 1472),
	}
	var all []intrusion
	for name, payload := range cases {
		all = append(all, intrusion{name, from, payload, "malformed"})
	}
	return all
}

// What each --source-check does, see fastpath.SourceCheck. Nodes are hosts a
// and b.
//
//	host a, a peer ──────────┐
//	                         ├── host b ── flannel0
//	host c, without a lease ─┘
func TestHostAcceptsOnlyWhatItsSourceCheckAdmits(t *testing.T) {
	t.Parallel()
	const a, c = 0, 2 // hosts
	for _, mode := range []struct {
		name       string
		intrusions []intrusion
	}{
		{"strict", []intrusion{
			{"a peer's packet", a, innerPacket("10.5.1.2", "10.5.2.2"), ""},
			{"a peer's IPv6 packet", a, innerPacket("fd00:10:5:1::2", "fd00:10:5:2::2"), ""},
			{"a peer's device", a, innerPacket("10.5.1.0", "10.5.2.2"), ""},
			{"a stranger with a peer's source", c, innerPacket("10.5.1.2", "10.5.2.2"), "unknown_peer"},
			{"a stranger with a peer's IPv6 source", c, innerPacket("fd00:10:5:1::2", "fd00:10:5:2::2"), "unknown_peer"},
			{"a stranger with a source in no lease", c, innerPacket("10.5.3.2", "10.5.2.2"), "unknown_peer"},
			{"a source in no lease", a, innerPacket("10.5.3.2", "10.5.2.2"), "spoofed_source"},
			{"a source in our own subnet", a, innerPacket("10.5.2.3", "10.5.2.2"), "spoofed_source"},
			{"a source outside the network", a, innerPacket("192.0.2.1", "10.5.2.2"), "spoofed_source"},
			{"an IPv6 source in no lease", a, innerPacket("fd00:10:5:3::2", "fd00:10:5:2::2"), "spoofed_source"},
			{"a destination in another subnet", a, innerPacket("10.5.1.2", "10.5.3.2"), "foreign_destination"},
			{"a destination on the underlay", a, innerPacket("10.5.1.2", "172.31.9.12"), "foreign_destination"},
			{"an IPv6 destination in another subnet", a, innerPacket("fd00:10:5:1::2", "fd00:10:5:3::2"), "foreign_destination"},
			{"a destination for all", a, innerPacket("10.5.1.2", "255.255.255.255"), "foreign_destination"},
		}},
		{"inner", []intrusion{
			{"a peer's packet", a, innerPacket("10.5.1.2", "10.5.2.2"), ""},
			{"a stranger with a peer's source", c, innerPacket("10.5.1.2", "10.5.2.2"), ""},
			{"a stranger with a peer's IPv6 source", c, innerPacket("fd00:10:5:1::2", "fd00:10:5:2::2"), ""},
			{"a source in no lease", a, innerPacket("10.5.3.2", "10.5.2.2"), "spoofed_source"},
			{"a stranger with a source in no lease", c, innerPacket("10.5.3.2", "10.5.2.2"), "spoofed_source"},
			{"a destination in another subnet", c, innerPacket("10.5.1.2", "10.5.3.2"), "foreign_destination"},
		}},
		{"off", []intrusion{
			{"a peer's packet", a, innerPacket("10.5.1.2", "10.5.2.2"), ""},
			{"a stranger with a source in no lease", c, innerPacket("10.5.3.2", "10.5.2.2"), ""},
			{"a stranger with an IPv6 source in no lease", c, innerPacket("fd00:10:5:3::2", "fd00:10:5:2::2"), ""},
			{"a source outside the network", a, innerPacket("192.0.2.1", "10.5.2.2"), ""},
			{"a destination in another subnet", a, innerPacket("10.5.1.2", "10.5.3.2"), ""},
		}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			opts := labOptions{flags: []string{"--source-check=" + mode.name}, nodes: 2, Options: netlab.Options{Hosts: 3}}
			forEngines(t, opts, func(t *testing.T, l *lab) {
				passed := newTap(t, l.Hosts[1].NS, "flannel0")
				for _, i := range append(mode.intrusions, broken(a)...) {
					l.expectFate(passed, i)
				}
			})
		})
	}
}

// expectFate sends the intrusion to host b, followed by a packet that certainly
// passes, and checks what is counted and what comes out of flannel0.
func (l *lab) expectFate(passed *tap, i intrusion) {
	l.t.Helper()
	before := l.daemons[1].status()
	l.inject(i.from, 1, 0, i.payload)
	if i.reason == "" {
		got := passed.next(i.name, notICMPv4)
		if !bytes.Equal(got, i.payload) {
			l.t.Errorf("%s: flannel0 delivered\n% x\nwant\n% x", i.name, got, i.payload)
		}
		return
	}
	if !testkit.Within(testkit.Patience, func() bool {
		return l.daemons[1].status().Drops.RX[i.reason] == before.Drops.RX[i.reason]+1
	}) {
		l.t.Errorf("%s: not counted as %s; drops before %v, now %v", i.name, i.reason, before.Drops.RX, l.daemons[1].status().Drops.RX)
	}
	witness := innerPacket("10.5.1.2", "10.5.2.2")
	l.inject(0, 1, 0, witness)
	if got := passed.next("packet after "+i.name, notICMPv4); !bytes.Equal(got, witness) {
		l.t.Errorf("%s: came out of flannel0:\n% x", i.name, got)
	}
	var dropped uint64
	for reason, n := range l.daemons[1].status().Drops.RX {
		dropped += n - before.Drops.RX[reason]
	}
	if dropped != 1 {
		l.t.Errorf("%s: %d packets dropped, want one", i.name, dropped)
	}
}

// notICMPv4 leaves out the errors about packets that the host sends back into
// the tunnel.
func notICMPv4(b []byte) bool { return b[0]>>4 != 4 || b[9] != unix.IPPROTO_ICMP }

// A peer with two addresses needs --source-check=inner: strict accepts only its
// public IP.
//
//	host a, 172.31.9.11 and .111 ── host b
func TestPeerIsKnownByItsPublicIPOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	second := netip.MustParsePrefix("172.31.9.111/24")
	addAddr(t, l.Hosts[0].NS, netlab.UnderlayLink, second)
	passed := newTap(t, l.Hosts[1].NS, "flannel0")
	l.expectFate(passed, intrusion{"from the public IP", 0, innerPacket("10.5.1.2", "10.5.2.2"), ""})
	l.Hosts[0].Addr = second.Addr()
	before := l.daemons[1].status().Drops.RX["unknown_peer"]
	l.inject(0, 1, 0, innerPacket("10.5.1.2", "10.5.2.2"))
	testkit.Eventually(t, "a datagram from the other address is dropped as unknown_peer", func() bool {
		return l.daemons[1].status().Drops.RX["unknown_peer"] == before+1
	})
}

// pod-a ── host a ── ? 10.5.99.1
func TestPodLearnsThatNoNodeHoldsAnAddress(t *testing.T) {
	t.Parallel()
	for _, filter := range []struct{ name, value string }{{"without rp_filter", "0"}, {"with strict rp_filter", "1"}} {
		t.Run(filter.name, func(t *testing.T) {
			forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
				for _, link := range []string{"all", "flannel0", "cni0"} {
					if err := l.Hosts[0].NS.Sysctl("net/ipv4/conf/"+link+"/rp_filter", filter.value); err != nil {
						t.Fatal(err)
					}
				}
				for _, free := range []string{"10.5.99.1:80", "[fd00:10:5:99::1]:80"} {
					_, err := l.pod(0).NS.Dial(t.Context(), "tcp", free)
					if !errors.Is(err, unix.ENETUNREACH) {
						t.Errorf("connecting to %s: %v, want ENETUNREACH", free, err)
					}
				}
				testkit.Eventually(t, "the two are counted", func() bool {
					doc := l.daemons[0].status()
					var answers uint64
					for _, s := range doc.Shards {
						answers += s.ICMPSent
					}
					// The kernel's multicast listener reports have no route either.
					return answers == 2 && doc.Drops.TX["no_route"] >= 2
				})
			})
		})
	}
}

// pod-a ── host a (1) ──────────── host b (2) ── pod-b (3)
func TestTracerouteSeesBothHosts(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		back, there := newTap(t, l.pod(0).NS, "eth0"), newTap(t, l.pod(1).NS, "eth0")
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			from := netip.AddrPortFrom(ofFamily(l.pod(0), addr), 1000)
			p := udpPacket(from, netip.AddrPortFrom(addr, 33434), []byte("probe"))
			// The host that forwards from its TUN device answers from there.
			hops := []netip.Addr{l.Hosts[0].Gateway(), l.Hosts[1].Subnet.Addr()}
			header, exceeded := 20, byte(11)
			if addr.Is6() {
				hops = []netip.Addr{l.Hosts[0].Gateway6(), l.Hosts[1].Subnet6.Addr()}
				header, exceeded = 40, 3
			}
			for i, hop := range hops {
				p.ttl = uint8(i + 1)
				sendRaw(t, l.pod(0).NS, addr, p.bytes())
				got := back.next("time exceeded", func(b []byte) bool { return len(b) > header && b[header] == exceeded })
				if source(got) != hop {
					t.Errorf("hop %d: %s answers, want %s", i+1, source(got), hop)
				}
			}
			p.ttl = 3
			sendRaw(t, l.pod(0).NS, addr, p.bytes())
			there.next("probe", func(b []byte) bool { return source(b) == from.Addr() })
		})
	})
}
