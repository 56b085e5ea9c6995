package e2e

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	TCP, both ways at once
func TestTCPCarriesContentBothWays(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{}, func(t *testing.T, l *lab) {
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			for _, flows := range []int{1, 16} {
				s := streams{flows: flows, up: 32 << 20, down: 32 << 20}
				if err := s.run(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("%d flows: %v", flows, err)
				}
			}
		})
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	UDP, each datagram sent back by pod-b
func TestUDPCarriesContentBothWays(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{}, func(t *testing.T, l *lab) {
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			for _, flows := range []int{1, 16} {
				d := datagrams{flows: flows, count: 4096 / flows, window: 16, sizes: []int{8, 1400, 1400, 1400, 700, 64}}
				if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("%d flows: %v", flows, err)
				}
			}
		})
	})
}

// pod-a ── host a ──────────── host b ── pod-b
func TestSmallMemoryProfileCarriesTheSameContent(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{flags: []string{"--memory=small"}}, func(t *testing.T, l *lab) {
		if got := l.daemons[0].status().Dataplane.Memory; !strings.HasPrefix(got, "small (") {
			t.Errorf("profile %q", got)
		}
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			s := streams{flows: 8, up: 16 << 20, down: 16 << 20}
			d := datagrams{flows: 8, count: 100, window: 1, sizes: []int{8, 1400, 4000}}
			if err := errors.Join(s.run(l.pod(0), l.pod(1), addr), d.run(l.pod(0), l.pod(1), addr)); err != nil {
				t.Error(err)
			}
		})
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	UDP in 3 to 42 fragments, sent back by pod-b
func TestFragmentedDatagramsArrive(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{}, func(t *testing.T, l *lab) {
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			for _, size := range []int{4000, 60000} {
				d := datagrams{flows: 2, count: 100, window: 2, sizes: []int{size}}
				if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
		})
	})
}

// pod-a ── host a ── MTU 9000 ── host b ── pod-b
func TestTunnelTakesTheMTUOfItsInterface(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{Options: netlab.Options{MTU: 9000}}, func(t *testing.T, l *lab) {
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			if err := ping(l.pod(0), addr, 9000-28); err != nil {
				t.Error(err)
			}
			if err := (streams{flows: 4, up: 32 << 20, down: 32 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
				t.Error(err)
			}
		})
	})
}

// The order of a flow must not depend on how the work is shared out.
//
// pod-a ── host a, n pairs ──────────── host b, n pairs ── pod-b
func TestFlowsKeepTheirOrderWhateverTheNumberOfThreads(t *testing.T) {
	t.Parallel()
	for _, pairs := range []int{1, 2, 4} {
		t.Run(strconv.Itoa(pairs), func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{flags: []string{"--thread-pairs=" + strconv.Itoa(pairs)}})
			var steady []*steadyFlow
			for _, p := range [][2]*netlab.Pod{{l.pod(0), l.pod(1)}, {l.pod(1), l.pod(0)}} {
				for range 4 {
					steady = append(steady, startSteadyFlow(t, p[0], p[1], p[1].Addr), startSteadyFlow(t, p[0], p[1], p[1].Addr6))
				}
			}
			for _, s := range steady {
				testkit.Eventually(t, "a thousand datagrams are sent", func() bool { return s.sent.Load() > 1000 })
				if err := s.stop(); err != nil {
					t.Errorf("%s: %v", s.name, err)
				}
			}
			if got := len(l.daemons[0].status().Shards); got != 4*pairs {
				t.Errorf("%d shards, want four for each pair of threads", got)
			}
		})
	}
}

// Everything from one peer arrives on one socket and thus at one shard. If the
// device learned from that which queue the flows belong to, as the kernel's
// default is, they would all move there with their first reply, past packets
// that wait in another queue.
//
// pod-a ── host a, 2 shards ──────────── host b ── pod-b
func TestRepliesDoNotMoveFlowsToAnotherShard(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{flags: []string{"--thread-pairs=2", "--source-ports=off", "--mtu-probes=off"}}) // which are packets too
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		before := l.daemons[0].status().Shards
		// Each shard has some of 64 flows, except with a probability of 2⁻⁶³.
		d := datagrams{flows: 64, count: 100, window: 8, sizes: []int{100}}
		if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
			t.Error(err)
		}
		after := l.daemons[0].status().Shards
		for i := range after {
			// A flow that moves with its first reply leaves some packets
			// behind. A single one is the initial ping.
			if n := after[i].TX.Packets - before[i].TX.Packets; n%100 > 1 || n < 100 {
				t.Errorf("shard %d sent %d packets of 64 flows with 100 packets each", i, n)
			}
		}
	})
}

// What a host sends by itself, the kubelet's probes for example, comes from its
// address on flannel0.
//
// host a ──────────── host b ── pod-b
func TestHostTalksToPodsOfOtherHosts(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		host := &netlab.Pod{NS: l.Hosts[0].NS, Addr: l.Hosts[0].Subnet.Addr(), Addr6: l.Hosts[0].Subnet6.Addr()}
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(host, l.pod(1), addr); err != nil {
				t.Errorf("to pod-b: %v", err)
			}
			if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(l.pod(1), host, ofFamily(host, addr)); err != nil {
				t.Errorf("from pod-b: %v", err)
			}
		})
	})
}

const gibibyte = 1 << 30

func TestAGibibyteArrivesUnharmed(t *testing.T) {
	t.Parallel()
	forWires(t, labOptions{}, func(t *testing.T, l *lab) {
		s := streams{flows: 1, up: gibibyte}
		if err := s.run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
			t.Error(err)
		}
	})
}

func TestAGibibyteArrivesUnharmedOverALossyWire(t *testing.T) {
	t.Parallel()
	impair := netlab.Impairment{Loss: 0.01, Reorder: 0.01, Corrupt: 0.001, Seed: 1}
	forEngines(t, labOptions{Options: netlab.Options{Impair: &impair}}, func(t *testing.T, l *lab) {
		s := streams{flows: 8, up: gibibyte}
		if err := s.run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
			t.Error(err)
		}
		stats := l.Relay.Stats()
		if stats.Dropped == 0 || stats.Reordered == 0 || stats.Corrupted == 0 {
			t.Errorf("the wire impaired nothing: %+v", stats)
		}
	})
}
