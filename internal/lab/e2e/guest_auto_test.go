package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// podMTU implements node.
func (n *guestNode) podMTU() int {
	n.t.Helper()
	return mtuOf(n.t, n.run("cat /run/flannel/subnet.env"))
}

// bootIn boots a guest in the place of host number i, which has been a node of
// the cluster before.
func (c *cluster) bootIn(i int, modules ...string) *guestNode {
	c.t.Helper()
	env := filepath.Join(c.t.TempDir(), "subnet.env")
	testkit.Must(c.t, os.WriteFile(env, []byte(c.stack.lastSubnets(c.nodes[i])), 0o644))
	return bootNode(c.t, linux61, c.nodes[i], map[string]string{"/run/flannel/subnet.env": env}, modules...)
}

// expectBackend fails the test unless host number i reports that it reaches
// host number j with a backend.
func (c *cluster) expectBackend(t *testing.T, i, j int, backend string) {
	t.Helper()
	n := c.running[i].(interface{ status() *status.Document })
	for _, p := range n.status().Dataplane.Peers {
		if slices.Contains(p.Subnets, c.nodes[j].Subnet) {
			if p.Backend != backend {
				t.Errorf("host %s reaches host %s with %s, want %s", c.nodes[i].Letter, c.nodes[j].Letter, p.Backend, backend)
			}
			return
		}
	}
	t.Errorf("host %s has no peer with the subnet of host %s", c.nodes[i].Letter, c.nodes[j].Letter)
}

// The largest packet that fits the path between two pods of a dual stack, by family.
var (
	throughVXLAN = [2]int{1450, 1430}
	throughUDP   = [2]int{1472, 1472}
)

// A real kernel that has no VXLAN, in the third node.
//
//	pod-a ── host a ─┬─ host b ─┬─ guest ── pod-c
//	       VXLAN     │  VXLAN   │
//	                 └── etcd ──┘
func TestNodeWithoutVXLANJoinsAVXLANClusterWhichGoesOn(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack, Options: netlab.Options{Hosts: 3}})
	n := c.bootIn(2, "tun")
	if out, err := n.Run("ip link add vxlan0 type vxlan"); err == nil || !strings.Contains(out, "Operation not supported") {
		t.Fatalf("the guest's kernel should have no VXLAN: %v\n%s", err, out)
	}
	c.start(0, twill("a"))
	c.start(1, twill("b"))
	c.waitTalk()
	flows := c.steady(0, 1)
	etcd := "--etcd-endpoints=" + c.endpoint()
	const why = "this kernel has no VXLAN"

	t.Run("without --backend=auto it waits, and says what to do", func(t *testing.T) {
		n.launch(etcd)
		n.eventually("status names the remedy", func() bool {
			page, err := n.Run("twill status")
			return err == nil && strings.Contains(testkit.Unwrapped(page), why) && strings.Contains(page, "--backend=auto")
		})
		if got := c.entries(); len(got) != 2 {
			t.Errorf("it has acquired a lease that no peer can use: %v", got)
		}
		n.stop()
	})
	n.start(etcd, "--backend=auto", "--healthz-port=9100")
	c.running[2] = n
	c.setPodMTU(2, n.podMTU())

	t.Run("with it, it says why it takes udp", func(t *testing.T) {
		doc := n.status()
		if doc.Backend != "auto" || !slices.Equal(doc.Backends, []string{"udp"}) || !strings.Contains(doc.BackendWhy, why) {
			t.Errorf("status: %s, %q because of %q; want auto, udp because %s", doc.Backend, doc.Backends, doc.BackendWhy, why)
		}
		if page := testkit.Unwrapped(n.run("twill status")); !strings.Contains(page, why) {
			t.Errorf("the page of twill status lacks %q:\n%s", why, page)
		}
		if log := n.run("cat /tmp/twilld.log"); strings.Count(log, why) != 1 {
			t.Errorf("the log should have one line with %q:\n%s", why, log)
		}
		metric := n.run("wget -q -O - http://127.0.0.1:9100/metrics | grep '^twill_backend_info'")
		if !strings.HasPrefix(metric, `twill_backend_info{backend="udp",configured="auto"`) || !strings.Contains(metric, why) {
			t.Errorf("metric %s, want udp for auto because %s", metric, why)
		}
	})
	t.Run("each pair talks in the best way that both have", func(t *testing.T) {
		c.waitTalk()
		c.expectPair(t, 0, 1, throughVXLAN)
		c.expectBackend(t, 0, 1, "vxlan")
		for i := range 2 {
			c.expectPair(t, i, 2, throughUDP)
			c.expectBackend(t, i, 2, "udp")
			c.expectBackend(t, 2, i, "udp")
		}
	})
	t.Run("the other nodes have not noticed", func(t *testing.T) {
		flows.pass(t, 1000)
		flows.stop(t)
	})
	c.checkHistory()
}

// The same kernel, with the module.
//
//	pod-a ── host a ─┬─ guest ── pod-b
//	                 └─ etcd
func TestNodesWithKernelsFarApartTalkVXLAN(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "auto"}`, stack: dualStack})
	n := c.bootIn(1, "tun", "vxlan")
	c.start(0, twill("a"))
	n.start("--etcd-endpoints=" + c.endpoint())
	c.running[1] = n
	c.setPodMTU(1, n.podMTU())
	if got := n.status().Backends; !slices.Equal(got, []string{"vxlan", "udp"}) {
		t.Errorf("backends of the guest: %q, want vxlan and udp", got)
	}
	c.expectPair(t, 0, 1, throughVXLAN)
	c.expectBackend(t, 0, 1, "vxlan")
	c.expectBackend(t, 1, 0, "vxlan")
}

// The same kernel, with neither module.
func TestNodeWithoutAnyBackendReportsWhatEachNeeds(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "auto"}`})
	n := c.bootIn(1)
	n.launch("--etcd-endpoints=" + c.endpoint())
	n.eventually("status names both remedies", func() bool {
		page, err := n.Run("twill status")
		page = testkit.Unwrapped(page)
		return err == nil && strings.Contains(page, "modprobe vxlan") && strings.Contains(page, "modprobe tun")
	})
	if got := c.entries(); len(got) != 0 {
		t.Errorf("it has acquired a lease that no peer can use: %v", got)
	}
}
