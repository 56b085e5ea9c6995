package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// kernelBackend is a backend whose packets the kernel forwards by itself, and what
// a lease of it says besides its addresses.
type kernelBackend struct{ backend, lease string }

var kernelBackends = []kernelBackend{
	{"vxlan", `"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:77:77:77:77:04"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:77:77:77:77:06"}`},
	{"host-gw", `"BackendType":"host-gw"`},
}

// forKernelBackends runs a test as a parallel subtest for each of them, in a
// cluster of two nodes whose pods, of both families, talk.
func forKernelBackends(t *testing.T, test func(t *testing.T, c *cluster, b kernelBackend)) {
	for _, b := range kernelBackends {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, b.backend), stack: dualStack})
			c.runTwill()
			test(t, c, b)
		})
	}
}

// ghost is what every trace of a node that has a lease and does not run contains.
var ghost = []string{"10.5.77.", "fd00:10:5:77:", "172.31.9.77", "fd00:172:31:9::77", "02:77:77:77:77:0"}

// addGhost makes the lease of a ghost; with is what kernelBackends have.
func (c *cluster) addGhost(with string) {
	c.t.Helper()
	c.put("subnets/10.5.77.0-24&fd00:10:5:77::-64", `{"PublicIP":"172.31.9.77","PublicIPv6":"fd00:172:31:9::77",`+with+`}`)
}

func (c *cluster) removeGhost() {
	c.t.Helper()
	c.remove("subnets/10.5.77.0-24&fd00:10:5:77::-64")
}

// remove deletes a key under the prefix.
func (c *cluster) remove(key string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	_, err := c.client.Delete(ctx, etcdPrefix+"/"+key)
	testkit.Must(c.t, err)
}

// seesGhost waits until host number i has a route for a ghost, or until it has
// nothing of one.
func (c *cluster) seesGhost(i int, there bool) {
	c.t.Helper()
	testkit.Eventually(c.t, fmt.Sprintf("host %s knows the ghost: %t", c.nodes[i].Letter, there), func() bool {
		all := facts(c.t, c.nodes[i].NS, nil)
		if !there {
			return len(except(all, ghost...)) == len(all)
		}
		routes := except(all, "neighbour", "fdb")
		return len(except(routes, ghost[0])) < len(routes) && len(except(routes, ghost[1])) < len(routes)
	})
}

// ghostPasses makes and removes the lease of a ghost, and waits each time until
// host number i has followed. By then it has also done what was to be done for
// anything that happened before.
func (c *cluster) ghostPasses(i int, with string) {
	c.t.Helper()
	c.addGhost(with)
	c.seesGhost(i, true)
	c.removeGhost()
	c.seesGhost(i, false)
}

// steadyBetween starts flows between the pods of hosts number i and j, both ways
// and of each family.
func (c *cluster) steadyBetween(i, j int) (flows steadyFlows) {
	c.t.Helper()
	for _, way := range [][2]int{{i, j}, {j, i}} {
		for _, addr := range c.addrs(way[1]) {
			flows = append(flows, startSteadyFlow(c.t, c.pod(way[0]), c.pod(way[1]), addr))
		}
	}
	return flows
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	restarted  └── etcd
func TestRestartFindsEverythingInPlaceAndChangesNothing(t *testing.T) {
	t.Parallel()
	for _, b := range []kernelBackend{
		{`{"Type": "vxlan"}`, kernelBackends[0].lease},
		{`{"Type": "vxlan", "DirectRouting": true}`, kernelBackends[0].lease},
		{`{"Type": "auto"}`, kernelBackends[0].lease},
		{`{"Type": "host-gw"}`, kernelBackends[1].lease},
	} {
		for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprint(b.backend, " ", signal), func(t *testing.T) {
				t.Parallel()
				c := newCluster(t, clusterOptions{backend: b.backend, stack: dualStack})
				c.runTwill()
				before := c.tables()
				m := startMonitor(t, c.nodes[0].NS)
				d := c.running[0].(*daemon)
				for range 2 {
					d.stop(signal)
					d.start()
					d.waitReady()
					c.ghostPasses(0, b.lease)
				}
				all := m.changes()
				if other := except(all, ghost...); len(other) > 0 {
					t.Errorf("a restart changed\n%s", strings.Join(other, "\n"))
				}
				if !slices.ContainsFunc(all, func(line string) bool { return strings.HasPrefix(line, "new route 10.5.77.0/24") }) {
					t.Errorf("no message about the other node's route:\n%s", strings.Join(all, "\n"))
				}
				c.becomes(before, "the other node has gone") // on host b too
			})
		}
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	killed    └── etcd
func TestPodsLoseNoPacketWhileTheDaemonIsKilledAndStartedAgain(t *testing.T) {
	t.Parallel()
	forKernelBackends(t, func(t *testing.T, c *cluster, b kernelBackend) {
		flows := c.steadyBetween(0, 1)
		flows.pass(t, 500)
		for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			d := c.running[i].(*daemon)
			d.stop(signal)
			flows.pass(t, 1000)
			d.start()
			d.waitReady()
			flows.pass(t, 500)
		}
		flows.stop(t)
	})
}

// pod-a ── host a ─┬─ host b ── pod-b    VXLAN
//
//	killed    ├─ host c ── pod-c    udp
//	          └─ etcd
func TestPeersWithVXLANLoseNoPacketWhileANodeThatAlsoHasUDPIsKilled(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "auto"}`, Options: threeHosts})
	c.run(twill("a"), twill("b"), twill("c", "--backend=udp"))
	c.waitTalk()
	c.expectRoutes(t, 0, 2, viaUDP)
	flows := c.steadyBetween(0, 1)
	flows.pass(t, 500)
	for range 2 {
		d := c.running[0].(*daemon)
		d.stop(syscall.SIGKILL)
		flows.pass(t, 500)
		d.start()
		d.waitReady()
		flows.pass(t, 500)
		c.waitReach(0, 2)
		c.waitReach(2, 0)
	}
	flows.stop(t)
}

// pod-a ── host a, devices deleted ─┬──────── host b ── pod-b
//
//	└── etcd
func TestVXLANDeviceThatWasDeletedComesBackWithItsPeers(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack, Options: threeHosts})
	c.runTwill()
	before, vteps := c.tables(), c.macNames()
	for _, name := range []string{"flannel.1", "flannel-v6.1", "flannel.1"} {
		link, err := c.nodes[0].NS.Netlink().LinkByName(name)
		testkit.Must(t, err)
		testkit.Must(t, c.nodes[0].NS.Netlink().LinkDel(link))
		var after string
		if !testkit.Within(testkit.Patience, func() bool {
			after = c.tables()
			return after == before
		}) {
			t.Fatalf("after %s was deleted there is\n%s\nbefore there was\n%s", name, after, before)
		}
		c.waitTalk()
		if now := c.macNames(); fmt.Sprint(now) != fmt.Sprint(vteps) {
			t.Errorf("the VTEPs were %v and are %v; peers would have to learn them", vteps, now)
		}
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	restarted  └── etcd, with one lease fewer
func TestPeerThatLeftWhileTheDaemonWasDownIsRemoved(t *testing.T) {
	t.Parallel()
	forKernelBackends(t, func(t *testing.T, c *cluster, b kernelBackend) {
		before := c.tables()
		d := c.running[0].(*daemon)
		c.addGhost(b.lease)
		c.seesGhost(0, true)
		d.stop(syscall.SIGKILL)
		c.removeGhost()
		d.start()
		d.waitReady()
		c.seesGhost(0, false)
		c.seesGhost(1, false)
		if after := c.tables(); after != before {
			t.Errorf("before there was a third node\n%s\nand now\n%s", before, after)
		}
	})
}

// Peers need not learn a new MAC address when a node has been rebooted.
func TestVTEPsKeepTheirMACAddressesWhenTheirDevicesAreGoneAtTheStart(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack})
	c.runTwill()
	before, d := c.tables(), c.running[0].(*daemon)
	macs := fmt.Sprint(c.macNames())
	d.stop(syscall.SIGTERM)
	for _, link := range flannelLinks(t, c.nodes[0].NS) {
		testkit.Must(t, c.nodes[0].NS.Netlink().LinkDel(link))
	}
	m := startMonitor(t, c.nodes[1].NS)
	d.start()
	d.waitReady()
	c.waitTalk()
	if now := fmt.Sprint(c.macNames()); now != macs {
		t.Errorf("the VTEPs were %s and are %s", macs, now)
	}
	if after := c.tables(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if changes := m.changes(); len(changes) > 0 {
		t.Errorf("the peer had to change\n%s", strings.Join(changes, "\n"))
	}
}
