package e2e

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pod-a ── host a, with foreign objects ──┬──────── host b ── pod-b
//
//	└── etcd
func TestCleanUpAfterEachBackendLeavesTheHostAsItWas(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{
		`{"Type": "vxlan"}`, `{"Type": "vxlan", "VNI": 7}`, `{"Type": "vxlan", "DirectRouting": true}`,
		`{"Type": "host-gw"}`, `{"Type": "udp"}`, `{"Type": "udp", "DirectRouting": true}`,
	} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: backend, stack: dualStack})
			ns := c.nodes[0].NS
			addForeign(t, ns)
			c.setPodMTU(0, 1400)
			before := hostState(t, ns)
			c.runTwill()
			c.setPodMTU(0, 1400)
			if hostState(t, ns) == before {
				t.Fatal("a running daemon changes nothing")
			}
			d := c.running[0].(*daemon)
			d.stop(unix.SIGKILL)
			out, code := d.cleanUp()
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, out)
			}
			if after := hostState(t, ns); after != before {
				t.Errorf("the host was\n%s\nand is\n%s", before, after)
			}
			if got := d.files(); got != "" {
				t.Errorf("files left: %s", got)
			}
			if out, code := d.cleanUp(); code != 0 || strings.Contains(out, "removed") {
				t.Errorf("the second time: exit code %d, %s", code, out)
			}
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, where other leases come and go
func TestPacketsToOtherPeersAreNotLostWhileLeasesChange(t *testing.T) {
	t.Parallel()
	forKernelBackends(t, func(t *testing.T, c *cluster, b kernelBackend) {
		before, flows := c.tables(), c.steadyBetween(0, 1)
		for range 100 {
			c.addGhost(b.lease)
			c.put("subnets/10.5.78.0-24&fd00:10:5:78::-64", strings.NewReplacer("77:0", "78:0").Replace(
				`{"PublicIP":"172.31.9.78","PublicIPv6":"fd00:172:31:9::78",`+b.lease+`}`))
			c.seesGhost(0, true)
			c.remove("subnets/10.5.77.0-24&fd00:10:5:77::-64")
			c.remove("subnets/10.5.78.0-24&fd00:10:5:78::-64")
			c.seesGhost(0, false)
		}
		flows.pass(t, 500)
		flows.stop(t)
		for i := range 2 {
			c.seesGhost(i, false)
		}
		c.becomes(before, "all other leases have gone")
	})
}
