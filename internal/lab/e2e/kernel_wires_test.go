package e2e

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// On host a before the start, and on host b while twilld runs. Where all interfaces have no
// filter, interfaces that are made have the default.
//
// pod-a ── host a ──────────── host b ── pod-b
//
//	rp_filter=1, 2       rp_filter=1, 2
func TestReversePathFiltersDoNotStopTheKernelPath(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ conf, value, want string }{{"all", "1", "2"}, {"all", "2", "2"}, {"default", "1", "0"}, {"default", "2", "0"}} {
		t.Run(tt.conf+" "+tt.value, func(t *testing.T) {
			t.Parallel()
			l := newKernelLab(t, labOptions{engine: kernelEngine, Options: netlab.Options{Wire: netlab.MTU}})
			key := "net/ipv4/conf/" + tt.conf + "/rp_filter"
			testkit.Must(t, l.Hosts[0].NS.Sysctl(key, tt.value))
			l.start()
			testkit.Must(t, l.Hosts[1].NS.Sysctl(key, tt.value))
			for _, h := range l.Hosts {
				testkit.Eventually(t, "flannel0-rx of "+h.NS.String()+" has a filter that admits peers", func() bool {
					return setting(t, h.NS, "net/ipv4/conf/flannel0-rx/rp_filter") == tt.want
				})
			}
			testkit.Eventually(t, "pods talk", func() bool { return pingOnce(l.pod(0), l.pod(1).Addr) == nil })
			l.exchangeTCP(t)
			for _, d := range l.daemons {
				testkit.Eventually(t, "the kernel path counts packets", func() bool {
					tx, rx := kernelPackets(d.status())
					return tx > 1000 && rx > 1000
				})
			}
		})
	}
}

// setting reads a file of /proc/sys.
func setting(t *testing.T, ns *netlab.Namespace, key string) string {
	t.Helper()
	var text []byte
	testkit.Must(t, ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/" + key)
		return err
	}))
	return strings.TrimSpace(string(text))
}

// pod-a ── host a ── 1500, then 1400 ── host b ── pod-b
//
//	(host c)
func TestTheKernelPathCarriesWhatFitsANarrowPath(t *testing.T) {
	t.Parallel()
	const width = 1400
	for _, n := range narrowings {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			l := newKernelLab(t, labOptions{engine: kernelEngine, Options: netlab.Options{Hosts: 3}})
			l.start()
			results := make(chan error)
			addrs := []netip.Addr{l.pod(1).Addr, l.pod(1).Addr6}
			for _, addr := range addrs {
				s := streams{flows: 2, up: 32 << 20, down: 1 << 20}
				go func() { results <- s.run(l.pod(0), l.pod(1), addr) }()
			}
			testkit.Eventually(t, "traffic flows", func() bool { return l.txPackets(0) > 1000 })
			n.do(l, width)
			for range addrs {
				if err := <-results; err != nil {
					t.Errorf("TCP from before: %v", err)
				}
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				l.expectPathMTU(t, addr, width-overheadOver(false))
			})
			if err := l.echoWithout(l.pod(1).Addr, width); err != nil {
				t.Errorf("datagram that may be fragmented: %v", err)
			}
			before, _ := kernelPackets(l.daemons[0].status())
			l.exchangeTCP(t)
			testkit.Eventually(t, "the kernel path carries packets that fit", func() bool {
				tx, _ := kernelPackets(l.daemons[0].status())
				return tx > before+1000
			})
		})
	}
}

// The programs leave what is too large for the path to the engine, which answers it.
//
//	pod-a ── host a ── host c, 1400, silent ── host b ── pod-b
func TestTheKernelPathKeepsPacketsBelowTheSizeThatABlackHoleSwallows(t *testing.T) {
	t.Parallel()
	l := newKernelLab(t, labOptions{engine: kernelEngine, Options: netlab.Options{Hosts: 3}})
	l.start()
	l.expectBlackHole(t, func() {
		before, _ := kernelPackets(l.daemons[0].status())
		l.exchangeTCP(t)
		testkit.Eventually(t, "the kernel path carries packets that fit", func() bool {
			tx, _ := kernelPackets(l.daemons[0].status())
			return tx > before+1000
		})
	})
}

// pod-a ── host a ── host c, 400 ── host b ── pod-b
func TestPacketsOfEverySizeCrossAVeryNarrowPathDespiteTheKernelPath(t *testing.T) {
	t.Parallel()
	l := newKernelLab(t, labOptions{engine: kernelEngine, flags: []string{"--mtu-probes=off"}, Options: netlab.Options{Hosts: 3}})
	l.start()
	l.expectVeryNarrowPath(t)
}

// pod-a ── host a ────── tap ─ host b ── tap ─ pod-b
//
//	sent       TTL − 1            TTL − 1   seen
func TestTheKernelPathChangesNoPacketAndSendsNothingElse(t *testing.T) {
	t.Parallel()
	l := newKernelLab(t, labOptions{engine: kernelEngine})
	l.start()
	outer, arrivals := newTap(t, l.Hosts[1].NS, netlab.UnderlayLink), newTap(t, l.pod(1).NS, "eth0")
	packets := oddPackets(l.pod(0), l.pod(1))
	for name, p := range packets {
		sent := p.bytes()
		sendRaw(t, l.pod(0).NS, p.dst, sent)
		datagram := outer.next(name, func(b []byte) bool {
			inner, _, ok := tunnelled(b)
			return ok && source(inner) == p.src
		})
		if datagram == nil {
			continue
		}
		inner, tos, _ := tunnelled(datagram)
		if want := afterHops(sent, 1); !bytes.Equal(inner, want) {
			t.Errorf("%s: the datagram carries\n% x\nwant\n% x", name, inner, want)
		}
		if want := p.tos & ce; tos != want {
			t.Errorf("%s: outer TOS %#02x, want the inner ECN field alone, %#02x", name, tos, want)
		}
		const dontFragment = 0x40
		if df, want := datagram[6], p.dst.Is6() || p.frag&(dontFragment<<8) != 0; df != 0 && df != dontFragment || (df != 0) != want {
			t.Errorf("%s: outer flags %#02x, want DF: %v", name, df, want)
		}
		if sum := binary.BigEndian.Uint16(datagram[26:]); sum != 0 {
			t.Errorf("%s: the datagram has the checksum %#04x, so it was not sent by the kernel path", name, sum)
		}
		got := arrivals.next(name, func(b []byte) bool { return source(b) == p.src })
		if want := afterHops(sent, 2); !bytes.Equal(got, want) {
			t.Errorf("%s: got\n% x\nwant\n% x", name, got, want)
		}
	}
	for i, d := range l.daemons {
		testkit.Eventually(t, "the kernel path counts them", func() bool {
			tx, rx := kernelPackets(d.status())
			return [2]uint64{tx, rx}[i] >= uint64(len(packets))
		})
	}
}

// lossy is a wire that loses and reorders frames, and damages some.
func lossy() netlab.Options {
	return netlab.Options{Impair: &netlab.Impairment{Loss: 0.005, Reorder: 0.01, ReorderBy: 4, Corrupt: 0.001, Seed: 1}}
}

// exchangeHashed moves streams both ways across a lossy wire, and compares their
// SHA-256.
func (l *lab) exchangeHashed(t *testing.T, addrs ...netip.Addr) {
	t.Helper()
	for _, addr := range addrs {
		if err := (streams{flows: 4, up: 16 << 20, down: 16 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
			t.Errorf("TCP to %s: %v", addr, err)
		}
	}
	if stats := l.Relay.Stats(); stats.Dropped == 0 || stats.Reordered == 0 || stats.Corrupted == 0 {
		t.Errorf("the wire impaired nothing: %+v", stats)
	}
}

// pod-a ── host a ═══ loses, reorders, damages ═══ host b ── pod-b
//
//	kernel path               kernel path, offload or plain engine
func TestStreamsAcrossTheKernelPathSurviveALossyWire(t *testing.T) {
	t.Parallel()
	for _, e := range []engine{
		{"kernel and kernel", [][]string{kernelFlags}},
		{"kernel and offload", [][]string{kernelFlags, offloadEngine.flags[0]}},
		{"kernel and plain", [][]string{kernelFlags, plainFlags}},
	} {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			l := newKernelLab(t, labOptions{engine: e, Options: lossy()})
			l.start()
			l.exchangeHashed(t, l.pod(1).Addr, l.pod(1).Addr6)
		})
	}
}
