//go:build amd64

package e2e

import (
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	kernel path        stock flannel
func TestPodsOfStockFlannelTalkWithANodeThatHasTheKernelPath(t *testing.T) {
	t.Parallel()
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			t.Parallel()
			l := newStockLab(t, kernelEngine, netlab.Options{Wire: wire})
			a, b := l.pod(0), l.pod(1)
			for _, way := range []struct{ from, to *netlab.Pod }{{a, b}, {b, a}} {
				if err := ping(way.from, way.to.Addr, 1472); err != nil {
					t.Errorf("ping of full size from %s: %v", way.from.NS, err)
				}
				if err := (streams{flows: 4, up: 4 << 20, down: 4 << 20}).run(way.from, way.to, way.to.Addr); err != nil {
					t.Errorf("TCP from %s: %v", way.from.NS, err)
				}
				d := datagrams{flows: 1, count: 160, window: 1, sizes: []int{8, 1444, 700, 4000}}
				if err := d.run(way.from, way.to, way.to.Addr); err != nil {
					t.Errorf("UDP from %s: %v", way.from.NS, err)
				}
			}
			l.expectNoDrops(t)
			d := l.daemons[0]
			if tx, rx := kernelPackets(d.status()); tx+rx > 0 {
				t.Errorf("%d packets sent and %d received by the kernel path, with a peer that has none", tx, rx)
			}
			d.stop(syscall.SIGTERM)
			if out, code := d.cleanUp(); code != 0 {
				t.Errorf("twilld --cleanup: exit code %d: %s", code, out)
			}
		})
	}
}

// pod-a ── host a ═══ loses, reorders, damages ═══ host b ── pod-b
//
//	kernel path                             stock flannel
func TestStreamsBetweenTheKernelPathAndStockFlannelSurviveALossyWire(t *testing.T) {
	t.Parallel()
	l := newStockLab(t, kernelEngine, lossy())
	l.exchangeHashed(t, l.pod(1).Addr) // stock flannel's udp backend carries IPv4 only
	d := l.daemons[0]
	d.stop(syscall.SIGTERM)
	if out, code := d.cleanUp(); code != 0 {
		t.Errorf("twilld --cleanup: exit code %d: %s", code, out)
	}
}
