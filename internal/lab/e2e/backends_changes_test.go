package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// A lease with both families of which one changes: stock flannel ignores
// that.
//
//	pod-a ── host a ─┬──────── host b ── pod-b
//	                 └── etcd, with the lease of a third node
func TestChangeOfOneFamilyOfALeaseIsApplied(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, stack: dualStack})
	c.runTwill()
	const key = "subnets/10.5.77.0-24&fd00:10:5:77::-64"
	value := func(addr, mac, addr6, mac6 string) string {
		return fmt.Sprintf(`{"PublicIP":%q,"PublicIPv6":%q,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":%q},"BackendV6Data":{"VNI":1,"VtepMAC":%q}}`,
			addr, addr6, mac, mac6)
	}
	entries := func(dst, mac, dev, subnet string) []string {
		return []string{
			fmt.Sprintf("fdb %s dst %s dev %s permanent flags 0x2", mac, dst, dev),
			fmt.Sprintf("neighbour %s is %s dev %s permanent", subnet, mac, dev),
		}
	}
	m := startMonitor(t, c.nodes[0].NS)
	was, was6 := []string(nil), []string(nil)
	for _, step := range []struct {
		addr, mac, addr6, mac6 string
		still                  string // the device whose entries stay as they are
	}{
		{"172.31.9.77", "02:77:77:77:77:04", "fd00:172:31:9::77", "02:77:77:77:77:06", ""},
		{"172.31.9.77", "02:77:77:77:77:04", "fd00:172:31:9::78", "02:77:77:77:77:06", "flannel.1"},
		{"172.31.9.77", "02:77:77:77:77:04", "fd00:172:31:9::78", "02:77:77:77:77:07", "flannel.1"},
		{"172.31.9.78", "02:77:77:77:77:04", "fd00:172:31:9::78", "02:77:77:77:77:07", "flannel-v6.1"},
		{"172.31.9.78", "02:77:77:77:77:05", "fd00:172:31:9::78", "02:77:77:77:77:07", "flannel-v6.1"},
	} {
		c.put(key, value(step.addr, step.mac, step.addr6, step.mac6))
		want := entries(step.addr, step.mac, "flannel.1", "10.5.77.0")
		want6 := entries(step.addr6, step.mac6, "flannel-v6.1", "fd00:10:5:77::")
		var got []string
		testkit.Eventually(t, fmt.Sprintf("the entries of %+v", step), func() bool {
			got = facts(t, c.nodes[0].NS, nil)
			return contains(got, append(want, want6...)) && !containsOld(got, was, want) && !containsOld(got, was6, want6)
		}, func() string { return fmt.Sprintf("the entries are\n%s", strings.Join(got, "\n")) })
		was, was6 = want, want6
		for _, line := range m.changes() {
			if step.still != "" && (strings.HasSuffix(line, " dev "+step.still) || strings.Contains(line, "route")) {
				t.Errorf("%+v: %s", step, line)
			}
		}
	}
}

// contains reports whether all of want are among lines.
func contains(lines, want []string) bool {
	return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(lines, w) })
}

// containsOld reports whether lines has one of old that is no longer wanted.
func containsOld(lines, old, want []string) bool {
	return slices.ContainsFunc(old, func(o string) bool { return slices.Contains(lines, o) && !slices.Contains(want, o) })
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	MTU 1500, 1400, 1500   └── etcd
func TestMTUOfTheUnderlayIsFollowedAndTheDeviceKept(t *testing.T) {
	t.Parallel()
	for _, b := range []struct {
		backend, device string
		overhead        int
	}{{"vxlan", "flannel-v6.1", 70}, {"host-gw", netlab.UnderlayLink, 0}} {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, b.backend), stack: dualStack})
			c.runTwill()
			d, index := c.running[0].(*daemon), c.link(0, b.device).Attrs().Index
			for _, mtu := range []int{1400, 1500} {
				testkit.Must(t, c.nodes[0].NS.Netlink().LinkSetMTU(c.underlayLink(0), mtu))
				want := mtu - b.overhead
				testkit.Eventually(t, fmt.Sprintf("%s and subnet.env have an MTU of %d", b.device, want), func() bool {
					return strings.Contains(d.env(), fmt.Sprintf("FLANNEL_MTU=%d\n", want)) && c.link(0, b.device).Attrs().MTU == want
				}, d.env)
				c.waitTalk()
			}
			if now := c.link(0, b.device).Attrs().Index; now != index {
				t.Errorf("%s was recreated", b.device)
			}
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, the network's configuration
func TestOptionsOfVXLANAreAppliedToTheLiveDevice(t *testing.T) {
	t.Parallel()
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`})
	c.runTwill()
	flows := c.steadyBetween(0, 1)
	index := c.link(0, "flannel.1").Attrs().Index
	for _, change := range []struct {
		backend  string
		mtu      int
		learning bool
	}{
		{`{"Type": "vxlan", "Learning": true}`, 1450, true},
		{`{"Type": "vxlan", "MTU": 1400}`, 1350, false},
		{`{"Type": "vxlan"}`, 1450, false},
	} {
		c.configure(change.backend)
		for i := range 2 {
			var v *netlink.Vxlan
			testkit.Eventually(t, fmt.Sprintf("host %s has %s", c.nodes[i].Letter, change.backend), func() bool {
				v = c.link(i, "flannel.1").(*netlink.Vxlan)
				env := c.running[i].(*daemon).env()
				return v.Learning == change.learning && v.MTU == change.mtu && strings.Contains(env, fmt.Sprintf("FLANNEL_MTU=%d\n", change.mtu))
			}, func() string { return fmt.Sprintf("there is %+v", v) })
		}
		flows.pass(t, 500)
	}
	if now := c.link(0, "flannel.1").Attrs().Index; now != index {
		t.Error("the device was recreated")
	}
	flows.stop(t)
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	.11 → .21   └── etcd
func TestNewAddressOfTheUnderlayIsFollowedByTheNodeAndItsPeers(t *testing.T) {
	t.Parallel()
	forKernelBackends(t, func(t *testing.T, c *cluster, b kernelBackend) {
		before, talk := c.tables(), c.talk()
		c.moveHost(0, netip.MustParseAddr("172.31.9.21"))
		want := strings.NewReplacer("172.31.9.11", "172.31.9.21").Replace(before)
		var got string
		// The connection to etcd is one of the address that is gone, which
		// it takes seconds to find out.
		if !testkit.Within(testkit.Patience, func() bool {
			got = c.tables()
			return got == want
		}) {
			t.Fatalf("the tables do not follow the address:\n%s", differences(want, got))
		}
		c.waitTalk()
		talk.goesOn(t)
	})
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	└── etcd, where another node has taken the subnet of host a
func TestNodeThatLosesItsLeaseMovesItsDevicesToTheNextSubnet(t *testing.T) {
	t.Parallel()
	forKernelBackends(t, func(t *testing.T, c *cluster, b kernelBackend) {
		d, lost := c.running[0].(*daemon), c.nodes[0].Subnet
		key := fmt.Sprintf("subnets/%s-24&%s-64", lost.Addr(), c.nodes[0].Subnet6.Addr())
		c.remove(key)
		c.put(key, `{"PublicIP":"172.31.9.77","PublicIPv6":"fd00:172:31:9::77",`+b.lease+`}`)
		var now netip.Prefix
		testkit.Eventually(t, fmt.Sprintf("another subnet than %s", lost), func() bool {
			doc := d.status()
			if doc.Waiting != "" || doc.Lease == nil {
				return false
			}
			now = doc.Lease.Subnet
			return now.IsValid() && now != lost
		}, func() string { return fmt.Sprintf("it has %s", now) })
		via := "via " + c.nodes[0].Addr.String()
		if b.backend == "vxlan" {
			via = "via " + now.Addr().String()
		}
		testkit.Eventually(t, fmt.Sprintf("host b has a route for %s", now), func() bool {
			return len(except(facts(t, c.nodes[1].NS, nil), "route "+now.String()+" "+via)) < len(facts(t, c.nodes[1].NS, nil))
		})
		// Some of its pods, which still have the old addresses, may be left.
		if own := "route " + lost.String() + " via <nil> dev cni0"; len(except(facts(t, c.nodes[0].NS, nil), own)) == len(facts(t, c.nodes[0].NS, nil)) {
			t.Errorf("the bridge's route of its own subnet is gone:\n%s", strings.Join(facts(t, c.nodes[0].NS, nil), "\n"))
		}
		if b.backend != "vxlan" {
			return
		}
		has := facts(t, c.nodes[0].NS, nil)
		if addr := "address " + now.Addr().String() + "/32 dev flannel.1"; len(except(has, addr)) == len(has) {
			t.Errorf("no %s:\n%s", addr, strings.Join(has, "\n"))
		}
		if addr := "address " + lost.Addr().String(); len(except(has, addr)) < len(has) {
			t.Errorf("%s is still there:\n%s", addr, strings.Join(has, "\n"))
		}
	})
}
