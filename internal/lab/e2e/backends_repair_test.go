package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// becomes waits until the tables are again as they were.
func (c *cluster) becomes(before, after string) {
	c.t.Helper()
	var now string
	if !testkit.Within(testkit.Patience, func() bool {
		now = c.tables()
		return now == before
	}) {
		c.t.Fatalf("after %s:\n%s", after, differences(before, now))
	}
}

// pod-a ── host a, entries deleted ─┬──────── host b ── pod-b
//
//	└── etcd
func TestEntriesThatAreTakenAwayComeBack(t *testing.T) {
	t.Parallel()
	for _, b := range kernelBackends {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, b.backend), stack: dualStack, Options: threeHosts})
			c.runTwill()
			before, nl := c.tables(), c.nodes[0].NS.Netlink()
			routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
			testkit.Must(t, err)
			taken := 0
			for _, r := range routes {
				if r.Protocol == unix.RTPROT_BOOT && r.Gw != nil {
					testkit.Must(t, nl.RouteDel(&r))
					c.becomes(before, "route "+r.String()+" was deleted")
					taken++
				}
			}
			if taken != 4 {
				t.Errorf("there were %d routes to peers, want one per peer and family", taken)
			}
			for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
				for _, link := range flannelLinks(t, c.nodes[0].NS) {
					entries, err := nl.NeighList(link.Attrs().Index, family)
					testkit.Must(t, err)
					for _, e := range entries {
						if e.State&netlink.NUD_PERMANENT == 0 {
							continue
						}
						testkit.Must(t, nl.NeighDel(&e))
						c.becomes(before, fmt.Sprintf("%s %s on %s was deleted", e.IP, e.HardwareAddr, link.Attrs().Name))
					}
				}
			}
			c.waitTalk()
		})
	}
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	a link down, then up   └── etcd
func TestPodsOfKernelBackendsTalkAgainWhenALinkIsUpAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		backend, link string
	}{{"vxlan", "flannel.1"}, {"vxlan", netlab.UnderlayLink}, {"host-gw", netlab.UnderlayLink}} {
		t.Run(tt.backend+" "+tt.link, func(t *testing.T) {
			t.Parallel()
			// With IPv4 only: the kernel removes the IPv6 addresses of a link
			// that is down.
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, tt.backend)})
			c.runTwill()
			before, talk := c.tables(), c.talk()
			// What does not belong to the network is restored by others.
			ipv6 := func(s string) string { return strings.Join(except(strings.Split(s, "\n"), "fd00:172:31:9:"), "\n") }
			for range 3 {
				testkit.Must(t, c.nodes[0].NS.Netlink().LinkSetDown(c.link(0, tt.link)))
				testkit.Must(t, c.nodes[0].NS.Netlink().LinkSetUp(c.link(0, tt.link)))
				var now string
				testkit.Eventually(t, "the tables are as before "+tt.link+" went down and up", func() bool {
					now = c.tables()
					return ipv6(now) == ipv6(before)
				}, func() string { return differences(before, now) })
				talk.goesOn(t)
			}
		})
	}
}

// A network card is removed, with its addresses and the VXLAN devices on it, and
// inserted again.
//
//	pod-a ── host a ─ ✂ ─┬──────── host b ── pod-b
//	                     └── etcd
func TestPodsTalkAgainWhenTheUnderlayHasBeenTakenOutAndPutIn(t *testing.T) {
	t.Parallel()
	for _, backend := range []string{"vxlan", "host-gw", "udp"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, backend), stack: dualStack})
			c.runTwill()
			before, talk := c.tables(), c.talk()
			a, drawer := c.nodes[0].NS, netlabtest.Namespace(t, "drawer")
			move := func(from, to *netlab.Namespace) {
				t.Helper()
				link, err := from.Netlink().LinkByName(netlab.UnderlayLink)
				testkit.Must(t, err, from.Netlink().LinkSetNsFd(link, to.FD()))
			}
			move(a, drawer)
			d := c.running[0].(*daemon)
			testkit.Eventually(t, "the daemon reports that its interface is missing", func() bool { return d.status().Waiting != "" })
			move(drawer, a)
			testkit.Must(t, a.Netlink().LinkSetUp(c.underlayLink(0)))
			addAddr(t, a, netlab.UnderlayLink, netip.PrefixFrom(c.nodes[0].Addr, 24))
			addAddr(t, a, netlab.UnderlayLink, netip.PrefixFrom(c.nodes[0].Addr6, 64))
			d.waitReady()
			c.becomes(before, "the card is back")
			c.waitTalk()
			talk.goesOn(t)
		})
	}
}
