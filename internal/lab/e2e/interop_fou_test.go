//go:build amd64

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
)

// fouNode makes host number i a guest whose kernel carries the udp backend's packets by its
// modules, with all others as peers. Nothing of ours runs there.
func (l *stockLab) fouNode(t *testing.T, i int) {
	t.Helper()
	h := l.Hosts[i]
	n := bootNode(t, linux61, h, map[string]string{"/usr/sbin/fou": built(t, "fou", "./internal/lab/e2e/fou")}, "fou", "ipip", "sit")
	line := fmt.Sprintf("fou %s 8285 1472", h.Addr)
	for _, peer := range l.Hosts {
		if peer != h {
			line += fmt.Sprintf(" %s=%s,%s", peer.Addr, peer.Subnet, peer.Subnet6)
		}
	}
	n.run(line)
}

// The modules fou, ipip and sit of Debian's kernels send and receive the same datagrams:
// what they lack is not the wire format, but the checks (docs/kernel-path.md).
//
//	pod-a ── host a, twilld with offloads ──┐
//	pod-b ── host b, twilld without ────────┼── host d, modules of Linux 6.1 ── pod-d
//	pod-c ── host c, stock flannel ─────────┘
func TestPodsTalkWithANodeMadeOfKernelModulesAlone(t *testing.T) {
	t.Parallel()
	const stock, modules = 2, 3
	l := &stockLab{newLab(t, labOptions{
		engine: engine{"offload and plain", [][]string{offloadEngine.flags[0], plainFlags}},
		nodes:  2, idle: true, Options: netlab.Options{Hosts: 4},
	})}
	leases := l.leases()
	for _, i := range []int{stock, modules} {
		leases[i].BackendData = json.RawMessage("{}")
	}
	l.setLeases(leases)
	l.startStock(t, stock)
	l.start()
	l.fouNode(t, modules)
	for i, name := range []string{"offload", "plain", "stock"} {
		t.Run(name, func(t *testing.T) {
			a, d := l.pod(i), l.pod(modules)
			ways := []struct {
				from, to *netlab.Pod
				addr     netip.Addr
			}{{a, d, d.Addr}, {d, a, a.Addr}, {a, d, d.Addr6}, {d, a, a.Addr6}}
			if i == stock {
				ways = ways[:2] // its udp backend carries IPv4 only
			}
			for _, way := range ways {
				if err := ping(way.from, way.addr, 1472); err != nil {
					t.Errorf("ping of full size to %s: %v", way.addr, err)
				}
				if err := (streams{flows: 2, up: 2 << 20, down: 2 << 20}).run(way.from, way.to, way.addr); err != nil {
					t.Errorf("TCP to %s: %v", way.addr, err)
				}
			}
		})
	}
}
