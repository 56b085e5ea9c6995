package probe

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics/prom"
)

// wire is a network on which the hosts in up answer, each ping twice.
type wire struct {
	mu      sync.Mutex
	up      map[netip.Addr]bool
	sent    map[netip.Addr]int
	answers []uint16
	arrived chan struct{} // receives a value when there are answers
}

func (w *wire) Send(p echo.Ping, seq uint16) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent[p.To]++
	if w.up[p.To] {
		w.answers = append(w.answers, seq, seq)
		select {
		case w.arrived <- struct{}{}:
		default:
		}
	}
}

func (w *wire) Receive(_ int, got func(netip.Addr, uint16)) {
	w.mu.Lock()
	answers := w.answers
	w.answers = nil
	w.mu.Unlock()
	for _, seq := range answers {
		got(netip.Addr{}, seq)
	}
}

func (w *wire) Wait(limit time.Duration) error {
	select {
	case <-w.arrived:
	case <-time.After(limit):
	}
	return nil
}

// rig is a loop on a wire, with peers that a test changes.
type rig struct {
	*wire
	*Loop
	metrics *prom.Probes

	mu  sync.Mutex
	now []status.Peer
}

func (r *rig) set(peers ...status.Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = peers
}

// look returns what is known of the peers.
func (r *rig) look() []status.Peer {
	r.mu.Lock()
	defer r.mu.Unlock()
	peers := slices.Clone(r.now)
	r.Fill(peers)
	return peers
}

func start(t *testing.T, up ...string) *rig {
	r := &rig{wire: &wire{up: make(map[netip.Addr]bool), sent: make(map[netip.Addr]int), arrived: make(chan struct{}, 1)}, metrics: prom.NewProbes()}
	for _, a := range up {
		r.up[netip.MustParseAddr(a)] = true
	}
	r.Loop = New(10*time.Millisecond, func() []status.Peer {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.Clone(r.now)
	}, r.metrics)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx, r.wire) }()
	t.Cleanup(func() { cancel(); testkit.Receive(t, "the loop ends", done) })
	return r
}

func peerAt(public, subnet, backend string) status.Peer {
	return status.Peer{PublicIP: netip.MustParseAddr(public), Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}, Backend: backend}
}

// series returns the metrics of a name.
func (r *rig) series(t *testing.T, name string) int {
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.metrics)
	n, err := testutil.GatherAndCount(registry, name)
	testkit.Must(t, err)
	return n
}

// TestEachWayIsProbedAtItsEnd: a tunnel ends at a device with an address, plain routes at
// the node itself.
func TestEachWayIsProbedAtItsEnd(t *testing.T) {
	r := start(t, "10.5.2.0", "10.5.3.0", "192.0.2.4")
	r.set(peerAt("192.0.2.2", "10.5.2.0/24", "udp"), peerAt("192.0.2.3", "10.5.3.0/24", "vxlan"), peerAt("192.0.2.4", "10.5.4.0/24", "host-gw"))
	testkit.Eventually(t, "all three are heard", func() bool {
		for _, p := range r.look() {
			if p.Probe == nil || p.Probe.RTT <= 0 || p.Heard == nil || p.Probe.Sent < 2*window {
				return false
			}
		}
		return true
	})
	for _, name := range []string{"twill_probe_rtt_seconds", "twill_probe_loss_ratio", "twill_probes_total", "twill_probes_lost_total", "twill_probe_silent_peers"} {
		if n := r.series(t, name); n != 3 {
			t.Errorf("%s: %d series, want one for each backend", name, n)
		}
	}
}

// TestPeerThatDoesNotAnswerIsLost waits for the time that a probe may take.
func TestPeerThatDoesNotAnswerIsLost(t *testing.T) {
	r := start(t, "10.5.2.0")
	r.set(peerAt("192.0.2.2", "10.5.2.0/24", "udp"), peerAt("192.0.2.3", "10.5.3.0/24", "udp"))
	testkit.Eventually(t, "one is lost and the other is not", func() bool {
		peers := r.look()
		silent := peers[1].Probe
		return silent != nil && silent.Loss == 1 && silent.Lost == silent.Sent && silent.Lost > silentAfter &&
			peers[1].Heard == nil && peers[0].Heard != nil
	})
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.metrics)
	testkit.Eventually(t, "the metrics show one silent peer", func() bool {
		return testutil.GatherAndCompare(registry, strings.NewReader(`# HELP twill_probe_silent_peers Peers that answered none of the last three probes. twill status names them.
# TYPE twill_probe_silent_peers gauge
twill_probe_silent_peers{backend="udp"} 1
`), "twill_probe_silent_peers") == nil
	})
	r.set(peerAt("192.0.2.2", "10.5.2.0/24", "udp"))
	testkit.Eventually(t, "and none after it has gone", func() bool {
		return testutil.GatherAndCompare(registry, strings.NewReader(`# HELP twill_probe_silent_peers Peers that answered none of the last three probes. twill status names them.
# TYPE twill_probe_silent_peers gauge
twill_probe_silent_peers{backend="udp"} 0
`), "twill_probe_silent_peers") == nil
	})
}

// TestLossIsThatOfTheLastTenProbes, and a peer that comes back is heard again at once.
func TestLossIsThatOfTheLastTenProbes(t *testing.T) {
	var r result
	for i, step := range []struct {
		lost bool
		want float64
	}{{true, 1}, {false, .5}, {false, 1. / 3}, {true, .5}} {
		if r.add(step.lost); r.probes.Loss != step.want {
			t.Errorf("after %d probes: %v, want %v", i+1, r.probes.Loss, step.want)
		}
	}
	for range window {
		r.add(false)
	}
	if r.probes.Loss != 0 || r.probes.Sent != 14 || r.probes.Lost != 2 {
		t.Errorf("got %+v", r.probes)
	}
}

func TestForgottenPeersTakeNoMemory(t *testing.T) {
	r := start(t)
	for i := range 50 {
		only := peerAt("192.0.2.2", netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i), 0}), 24).String(), "udp")
		r.set(only)
		testkit.Eventually(t, "it is the only one that is known", func() bool {
			r.results.mu.Lock()
			defer r.results.mu.Unlock()
			_, known := r.results.of[keyOf(&only)]
			return known && len(r.results.of) == 1
		})
	}
}
