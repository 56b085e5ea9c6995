//go:build amd64

package e2e

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// swap ends what runs on host number i and starts a node of another kind there.
func (c *cluster) swap(i int, k kind) {
	c.t.Helper()
	switch n := c.running[i].(type) {
	case *daemon:
		n.stop(syscall.SIGTERM)
	case *stockNode:
		n.stop(c.t)
	}
	c.start(i, k)
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd
func TestConnectionOutlivesAChangeFromUDPToVXLANNodeByNode(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.run(ownUDP, ownUDP)
	stream := c.startStream(t)
	stream.passes(t, "with udp on both")
	c.expectRoutes(t, 0, 1, viaUDP)
	for _, k := range []kind{ownAuto, ownVXLAN, ownAuto, ownUDP} {
		for i := range 2 {
			c.swap(i, k)
			stream.passes(t, fmt.Sprintf("with %s on host %s", k.name, c.nodes[i].Letter))
		}
	}
	c.expectRoutes(t, 0, 1, viaUDP)
	c.expectRoutes(t, 1, 0, viaUDP)
	stream.stop(t)
	c.checkHistory()
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, the network's configuration
func TestConnectionOutlivesAChangeOfTheNetworksBackend(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.run(twill("a"), twill("b"))
	stream := c.startStream(t)
	stream.passes(t, "with udp")
	for _, change := range []struct {
		backend string
		device  devices
	}{
		{"auto", viaVXLAN}, {"vxlan", viaVXLAN}, {"host-gw", viaLink}, {"udp", viaUDP}, {"vxlan", viaVXLAN},
	} {
		c.configure(fmt.Sprintf(`{"Type": %q}`, change.backend))
		for i := range 2 {
			what := fmt.Sprintf("host %s sends through %s", c.nodes[i].Letter, change.device[0])
			if !testkit.Within(testkit.Patience, func() bool { return c.sendsThrough(i, 1-i, change.device) }) {
				t.Fatalf("after a change to %s, not within the time limit: %s", change.backend, what)
			}
		}
		stream.passes(t, "with "+change.backend)
		for i := range 2 {
			c.expectRoutes(t, i, 1-i, change.device)
			c.setPodMTU(i, c.running[i].podMTU())
		}
	}
	stream.stop(t)
	c.checkHistory()
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd
func TestConnectionOutlivesARollingSwapFromStockVXLANAndBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
	c.run(stockVXLAN, stockVXLAN)
	c.waitTalk()
	before := c.tables()
	stream := c.startStream(t)
	stream.passes(t, "with stock flannel on both")
	for _, k := range []kind{twill("twilld"), stockVXLAN} {
		for i := range 2 {
			c.swap(i, k)
			stream.passes(t, fmt.Sprintf("with %s on host %s", k.name, c.nodes[i].Letter))
		}
		if after := stockWords(c.tables()); after != before {
			t.Errorf("with %s the tables differ from those of stock flannel:\n%s", k.name, differences(before, after))
		}
	}
	stream.stop(t)
	c.checkHistory()
}
