package e2e

import (
	"net/netip"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/netlab"
)

// wires are the kinds of underlay that make a difference to the data plane.
var wires = []netlab.WireKind{netlab.Super, netlab.MTU}

// pod-a ── host a ──────────── host b ── pod-b
//
//	TCP, both ways at once
func TestTCPCarriesContentBothWays(t *testing.T) {
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			forEngines(t, func(t *testing.T, e engine) {
				l := newLab(t, labOptions{engine: e, Options: netlab.Options{Wire: wire}})
				forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
					for _, flows := range []int{1, 16} {
						s := streams{flows: flows, up: 32 << 20, down: 32 << 20}
						if err := s.run(l.pod(0), l.pod(1), addr); err != nil {
							t.Errorf("%d flows: %v", flows, err)
						}
					}
				})
			})
		})
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	UDP, each datagram sent back by pod-b
func TestUDPCarriesContentBothWays(t *testing.T) {
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			forEngines(t, func(t *testing.T, e engine) {
				l := newLab(t, labOptions{engine: e, Options: netlab.Options{Wire: wire}})
				forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
					for _, flows := range []int{1, 16} {
						d := datagrams{flows: flows, count: 4096 / flows, window: 16, sizes: []int{8, 1400, 1400, 1400, 700, 64}}
						if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
							t.Errorf("%d flows: %v", flows, err)
						}
					}
				})
			})
		})
	}
}

func TestFragmentedDatagramsArrive(t *testing.T) {
	forEngines(t, func(t *testing.T, e engine) {
		l := newLab(t, labOptions{engine: e})
		forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
			for _, size := range []int{4000, 60000} {
				d := datagrams{flows: 1, count: 200, window: 2, sizes: []int{size}}
				if err := d.run(l.pod(0), l.pod(1), addr); err != nil {
					t.Errorf("%d bytes: %v", size, err)
				}
			}
		})
	})
}

const gibibyte = 1 << 30

func TestAGibibyteArrivesUnharmed(t *testing.T) {
	for _, wire := range wires {
		t.Run(string(wire), func(t *testing.T) {
			forEngines(t, func(t *testing.T, e engine) {
				l := newLab(t, labOptions{engine: e, Options: netlab.Options{Wire: wire}})
				s := streams{flows: 1, up: gibibyte, limit: 3 * time.Minute}
				if err := s.run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAGibibyteArrivesUnharmedOverALossyWire(t *testing.T) {
	impair := netlab.Impairment{Loss: 0.01, Reorder: 0.01, Corrupt: 0.001, Seed: 1}
	forEngines(t, func(t *testing.T, e engine) {
		l := newLab(t, labOptions{engine: e, Options: netlab.Options{Impair: &impair}})
		s := streams{flows: 8, up: gibibyte, limit: 5 * time.Minute}
		if err := s.run(l.pod(0), l.pod(1), l.pod(1).Addr); err != nil {
			t.Error(err)
		}
		stats := l.Relay.Stats()
		if stats.Dropped == 0 || stats.Reordered == 0 || stats.Corrupted == 0 {
			t.Errorf("the wire did no harm: %+v", stats)
		}
	})
}
