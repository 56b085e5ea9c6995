package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// What a node derives from its address outlives the address: the MAC of its VXLAN
// devices, its key in etcd, its place among the peers of others. A node that gets
// the former address of another must not remove any of that.
//
//	pod-a ── host a, .11 → .21 ─┬─ host b, .12 ── pod-b
//	                            ├─ host c, .11 ── pod-c
//	                            └─ etcd
func TestNodeAtTheFormerAddressOfAnotherTakesNothingFromIt(t *testing.T) {
	for _, backend := range []string{"vxlan", "udp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{Options: threeHosts, stack: dualStack, backend: `{"Type": "` + backend + `"}`})
			from, from6 := c.Hosts[0].Addr, c.Hosts[0].Addr6
			c.start(0, twill("a"))
			c.start(1, twill("b"))
			c.waitTalk()
			a, subnet := c.running[0].(*daemon), c.running[0].(*daemon).status().Lease.Subnet
			c.moveTo(0, netip.MustParseAddr("172.31.9.21"), netip.MustParseAddr("fd00:172:31:9::21"))
			testkit.Eventually(t, "the lease has the new addresses", func() bool {
				doc := a.status()
				return doc.Waiting == "" && doc.Lease.PublicIP == c.Hosts[0].Addr && doc.Lease.PublicIPv6 == c.Hosts[0].Addr6
			})
			c.moveTo(2, from, from6)
			c.start(2, twill("c"))
			c.waitTalk()
			for i, n := range c.running {
				if doc := n.(*daemon).status(); doc.Waiting != "" || doc.AddressConflict != "" {
					t.Errorf("host %s waits for %q, conflict %q", c.nodes[i].Letter, doc.Waiting, doc.AddressConflict)
				}
			}
			if got := a.status().Lease.Subnet; got != subnet {
				t.Errorf("host a had %s and has %s", subnet, got)
			}
			if n := len(c.entries()); n != 3 {
				t.Errorf("%d leases of 3 nodes: %v", n, c.entries())
			}
			if backend == "vxlan" {
				c.expectOwnMACs(t)
			}
		})
	}
}

// moveTo gives host number i other addresses on the underlay.
func (c *cluster) moveTo(i int, v4, v6 netip.Addr) {
	c.t.Helper()
	h := c.Hosts[i]
	testkit.Must(c.t, h.NS.Netlink().AddrDel(c.underlayLink(i), &netlink.Addr{IPNet: netlab.IPNet(netip.PrefixFrom(h.Addr6, 64))}))
	addAddr(c.t, h.NS, netlab.UnderlayLink, netip.PrefixFrom(v6, 64))
	c.moveHost(i, v4)
	h.Addr6 = v6
	// As a host does when it gets an address, so that no neighbour keeps an old entry.
	for _, other := range c.Hosts {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			link, err := other.NS.Netlink().LinkByName(netlab.UnderlayLink)
			testkit.Must(c.t, err)
			known, err := other.NS.Netlink().NeighList(link.Attrs().Index, family)
			testkit.Must(c.t, err)
			for _, n := range known {
				if ip, _ := netip.AddrFromSlice(n.IP); ip.Unmap() == v4 || ip == v6 {
					testkit.Must(c.t, other.NS.Netlink().NeighDel(&n))
				}
			}
		}
	}
}

// expectOwnMACs checks that each VXLAN device has the MAC address that its node's lease
// announces, and that no two have the same.
func (c *cluster) expectOwnMACs(t *testing.T) {
	t.Helper()
	var all []string
	for i := range c.nodes {
		value := c.entries()[etcdPrefix+"/subnets/"+leaseKey(c.running[i].(*daemon))]
		var l struct{ BackendData, BackendV6Data struct{ VtepMAC string } }
		if err := json.Unmarshal([]byte(value), &l); err != nil {
			t.Fatalf("lease of host %s: %v\n%s", c.nodes[i].Letter, err, value)
		}
		for name, announced := range map[string]string{"flannel.1": l.BackendData.VtepMAC, "flannel-v6.1": l.BackendV6Data.VtepMAC} {
			if got := c.link(i, name).Attrs().HardwareAddr.String(); got != announced {
				t.Errorf("%s on host %s has %s, the lease %s", name, c.nodes[i].Letter, got, announced)
			}
			all = append(all, announced)
		}
	}
	slices.Sort(all)
	if distinct := slices.Compact(slices.Clone(all)); len(distinct) != len(all) {
		t.Errorf("two devices have one MAC address: %v", all)
	}
}

// leaseKey is the last part of the key of a daemon's lease in etcd.
func leaseKey(d *daemon) string {
	l := d.status().Lease
	return strings.ReplaceAll(fmt.Sprintf("%s&%s", l.Subnet, l.IPv6Subnet), "/", "-")
}
