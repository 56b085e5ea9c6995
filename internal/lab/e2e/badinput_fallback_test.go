package e2e

import (
	"net/netip"
	"strings"
	"testing"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	kernel refuses an offload
func TestPodsTalkWhereTheKernelRefusesAnOffload(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"tun-offload": "TUNSETOFFLOAD: invalid argument",
		"udp-gso":     "UDP_SEGMENT: protocol not available",
		"udp-gro":     "UDP_GRO: protocol not available",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{engine: engine{"auto", [][]string{nil}}, idle: true})
			d := l.daemons[0]
			d.wrap = []string{without(t), "-offload=" + name}
			l.start()
			for _, o := range d.status().Dataplane.Offloads {
				if o.Name == name && (o.InForce || !strings.Contains(o.Why, says)) {
					t.Errorf("status: %+v; want it not in force because of %q", o, says)
				}
			}
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
				if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
