//go:build amd64

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// Kinds of node that run stock flannel. It has one backend, the one of the
// network's configuration at its start.
var (
	stockVXLAN  = stock("stock vxlan", `{"Type": "vxlan"}`)
	stockUDP    = stock("stock udp", `{"Type": "udp"}`)
	stockHostGW = stock("stock host-gw", `{"Type": "host-gw"}`)
)

// stock is a node of stock flannel.
func stock(name, backend string) kind {
	return kind{name: name, backend: backend, start: func(c *cluster, i int) node {
		c.t.Helper()
		testkit.Must(c.t, buildStock())
		env := filepath.Join(scratchDir(c.t), "subnet.env")
		testkit.Must(c.t, os.WriteFile(env, []byte(c.stack.lastSubnets(c.nodes[i])), 0o644))
		return startStockNode(c.t, c.nodes[i].NS, c.endpoint(), env)
	}}
}

// podMTU implements node.
func (n *stockNode) podMTU() int { return n.mtu }

// golden describes a cluster of three nodes. The tables that stock flannel makes of
// it are in testdata/stock.
type golden struct {
	file    string
	backend string
	stack   stack
	routed  bool
}

var goldens = []golden{
	{"vxlan", `{"Type": "vxlan"}`, ipv4Stack, false},
	{"vxlan-dual", `{"Type": "vxlan"}`, dualStack, false},
	{"vxlan-direct", `{"Type": "vxlan", "DirectRouting": true}`, dualStack, true},
	{"vxlan-options", `{"Type": "vxlan", "VNI": 77, "Port": 4789, "MTU": 1400, "Learning": true, "GBP": true}`, dualStack, false},
	{"host-gw", `{"Type": "host-gw"}`, dualStack, false},
}

func (g golden) cluster(t *testing.T) *cluster {
	return newCluster(t, clusterOptions{
		Options: threeHosts, backend: g.backend, stack: g.stack, routed: g.routed,
	})
}

func (g golden) path() string { return filepath.Join("testdata", "stock", g.file+".txt") }

// read returns the tables without the comment.
func (g golden) read(t testing.TB) string {
	t.Helper()
	text := textOf(t, g.path())
	return text[strings.Index(text, "host a\n"):]
}

// The goldens are what stock flannel really does, and the harness would notice a
// difference.
func TestStockFlannelStillMakesTheTablesThatAreKept(t *testing.T) {
	t.Parallel()
	testkit.Must(t, buildStock())
	for _, g := range goldens {
		t.Run(g.file, func(t *testing.T) {
			t.Parallel()
			c := g.cluster(t)
			k := stock("stock", g.backend)
			c.run(k, k, k)
			c.waitTalk()
			got := c.tables()
			if *testkit.Update {
				testkit.Must(t, os.WriteFile(g.path(), []byte("# What three nodes of stock flannel 0.28.9 make of their hosts and of etcd with\n# "+
					c.stack.config(g.backend)+"\n# go test ./internal/lab/e2e -run "+t.Name()+" -update\n"+got), 0o644))
			}
			if want := g.read(t); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b    stock flannel on both
//
//	└── etcd
func TestPodsOfStockNodesTalk(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		kind
		stack
		mtu [2]int
	}{
		{stockVXLAN, ipv4Stack, [2]int{1450}},
		{stockUDP, ipv4Stack, [2]int{1472}},
		{stockHostGW, dualStack, [2]int{1500, 1500}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: k.backend, stack: k.stack})
			c.run(k.kind, k.kind)
			c.expectPair(t, 0, 1, k.mtu)
		})
	}
}
