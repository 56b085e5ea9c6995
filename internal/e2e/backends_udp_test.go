//go:build amd64

package e2e

import "testing"

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	twilld   └── etcd      stock flannel
func TestPodsOfTwilldAndOfStockUDPTalk(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`})
	c.run(twill("twilld"), stockUDP)
	c.expectPair(t, 0, 1, [2]int{1472})
}
