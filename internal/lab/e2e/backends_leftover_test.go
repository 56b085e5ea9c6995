package e2e

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// A change of the network's backend while a daemon is down leaves devices and
// routes of the one before.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd, the network's configuration
func TestBackendThatWasChangedWhileTheDaemonsWereDownLeavesNothing(t *testing.T) {
	t.Parallel()
	backends := []struct {
		json    string
		device  devices
		tunnels []string // the links that there may be
	}{
		// flannel0 too: the peer may be the last that has changed.
		{`{"Type": "vxlan"}`, viaVXLAN, []string{"flannel.1", "flannel-v6.1", "flannel0"}},
		{`{"Type": "udp"}`, viaUDP, []string{"flannel0"}},
		{`{"Type": "vxlan", "VNI": 7}`, devices{"flannel.7", "flannel-v6.7"}, []string{"flannel.7", "flannel-v6.7", "flannel0"}},
		{`{"Type": "host-gw"}`, viaLink, nil},
	}
	for i, from := range backends {
		for j, to := range backends {
			if i == j {
				continue
			}
			t.Run(from.json+" to "+to.json, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, clusterOptions{backend: from.json, stack: dualStack})
				c.runTwill()
				for k := range 2 {
					c.running[k].(*daemon).stop(unix.SIGKILL)
				}
				c.configure(to.json)
				for k := range 2 {
					d := c.running[k].(*daemon)
					d.start()
					d.waitReady()
					c.setPodMTU(k, d.podMTU())
				}
				for k := range 2 {
					if !testkit.Within(testkit.Patience, func() bool { return c.sendsThrough(k, 1-k, to.device) }) {
						c.expectRoutes(t, k, 1-k, to.device)
					}
					var links []string
					for _, l := range flannelLinks(t, c.nodes[k].NS) {
						links = append(links, l.Attrs().Name)
					}
					if len(except(links, to.tunnels...)) > 0 {
						t.Errorf("host %s has links %q, want %q", c.nodes[k].Letter, links, to.tunnels)
					}
				}
				c.waitTalk()
			})
		}
	}
}
