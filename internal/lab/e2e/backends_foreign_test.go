package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a, with foreign objects ──┬──────── host b ── pod-b
//
//	└── etcd
func TestWhatOthersHaveMadeIsNeverTouched(t *testing.T) {
	t.Parallel()
	for _, b := range kernelBackends {
		t.Run(b.backend, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, clusterOptions{backend: fmt.Sprintf(`{"Type": %q}`, b.backend), stack: dualStack})
			ns := c.nodes[0].NS
			addForeign(t, ns)
			c.runTwill()
			if b.backend == "vxlan" {
				addForeignEntries(t, ns)
			}
			before := hostState(t, ns)
			m := startMonitor(t, ns)
			d := c.running[0].(*daemon)
			for range 2 {
				c.ghostPasses(0, b.lease)
				d.stop(unix.SIGTERM)
				d.start()
				d.waitReady()
			}
			c.ghostPasses(0, b.lease)
			if after := hostState(t, ns); after != before {
				t.Errorf("before\n%s\nafter\n%s", before, after)
			}
			if other := except(m.changes(), ghost...); len(other) > 0 {
				t.Errorf("objects of other programs were written:\n%s", strings.Join(other, "\n"))
			}
		})
	}
}

// addForeign gives a host links and routes that look as if they might be
// flannel's.
func addForeign(t *testing.T, ns *netlab.Namespace) {
	t.Helper()
	nl := ns.Netlink()
	eth0, err := nl.LinkByName(netlab.UnderlayLink)
	testkit.Must(t, err)
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	testkit.Must(t,
		nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("flannel-bridge")}),
		nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs("overlay.9"), VxlanId: 9, Port: 4789, VtepDevIndex: eth0.Attrs().Index}),
	)
	via := net.IPv4(172, 31, 9, 12).To4()
	for _, r := range []netlink.Route{
		// Outside the network.
		{Dst: cidr(t, "10.99.0.0/24"), Gw: via},
		{Dst: cidr(t, "fd00:99::/64"), Gw: net.ParseIP("fd00:172:31:9::12")},
		// Of a metric, a type, a table or a protocol that flannel never uses.
		{Dst: cidr(t, "10.5.200.0/24"), Gw: via, Priority: 50, Protocol: unix.RTPROT_STATIC},
		{Dst: cidr(t, "fd00:10:5:200::/64"), Gw: net.ParseIP("fd00:172:31:9::12"), Priority: 50},
		{Dst: cidr(t, "10.5.201.0/24"), Type: unix.RTN_UNREACHABLE, Protocol: unix.RTPROT_STATIC},
		{Dst: cidr(t, "10.5.202.0/24"), Gw: via, Table: 100},
		{Dst: cidr(t, "10.5.203.0/24"), LinkIndex: eth0.Attrs().Index, Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_STATIC},
		// Of a part of a peer's subnet, and of all subnets.
		{Dst: cidr(t, "10.5.2.64/26"), Gw: via, Protocol: unix.RTPROT_STATIC},
		{Dst: cidr(t, "10.5.0.0/16"), Gw: via, Priority: 5000, Protocol: unix.RTPROT_STATIC},
	} {
		testkit.Must(t, nl.RouteAdd(&r))
	}
	testkit.Must(t, nl.NeighSet(&netlink.Neigh{
		LinkIndex: eth0.Attrs().Index, IP: net.IPv4(172, 31, 9, 200), State: netlink.NUD_PERMANENT,
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	}))
}

// addForeignEntries adds what an operator may have on the VXLAN devices.
func addForeignEntries(t *testing.T, ns *netlab.Namespace) {
	t.Helper()
	nl := ns.Netlink()
	for _, l := range flannelLinks(t, ns) {
		if l.Type() != "vxlan" {
			continue
		}
		dst, neighbour := net.IPv4(172, 31, 9, 99).To4(), net.IPv4(192, 0, 2, 7).To4()
		if strings.Contains(l.Attrs().Name, "v6") {
			dst, neighbour = net.ParseIP("fd00:172:31:9::99"), net.ParseIP("2001:db8::7")
		}
		for _, mac := range []net.HardwareAddr{{0, 0, 0, 0, 0, 0}, {2, 0, 0, 0, 0, 2}} {
			testkit.Must(t, nl.NeighAppend(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
				State: netlink.NUD_PERMANENT, IP: dst, HardwareAddr: mac,
			}))
		}
		testkit.Must(t, nl.NeighSet(&netlink.Neigh{
			LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: neighbour, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 3},
		}))
	}
}

// hostState is all of a host: links, addresses and routes of any kind, and the
// entries of flannel's links.
func hostState(t *testing.T, ns *netlab.Namespace) string {
	t.Helper()
	routes, err := ns.Netlink().RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: 100}, netlink.RT_FILTER_TABLE)
	testkit.Must(t, err)
	return netState(t, ns) + fmt.Sprintln(routes) + strings.Join(facts(t, ns, nil), "\n")
}

func cidr(t *testing.T, s string) *net.IPNet {
	t.Helper()
	_, n, err := net.ParseCIDR(s)
	testkit.Must(t, err)
	return n
}
