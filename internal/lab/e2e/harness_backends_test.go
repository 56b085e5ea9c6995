package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// stack is which families the pods of a cluster have.
type stack string

const (
	ipv4Stack stack = "ipv4"
	dualStack stack = "dual stack"
	ipv6Stack stack = "ipv6"
)

// has says whether pods have addresses of the family of a.
func (s stack) has(a netip.Addr) bool {
	return s == dualStack || a.Is4() == (s == ipv4Stack)
}

// config is the network's configuration with a backend, both JSON.
func (s stack) config(backend string) string {
	ipv4 := fmt.Sprintf(`"Network": %q`, netlab.Network)
	ipv6 := fmt.Sprintf(`"EnableIPv6": true, "IPv6Network": %q`, netlab.Network6)
	switch s {
	case ipv4Stack:
		return fmt.Sprintf(`{%s, "Backend": %s}`, ipv4, backend)
	case ipv6Stack:
		return fmt.Sprintf(`{"EnableIPv4": false, %s, "Backend": %s}`, ipv6, backend)
	}
	return fmt.Sprintf(`{%s, %s, "Backend": %s}`, ipv4, ipv6, backend)
}

// lastSubnets is the subnet.env of an earlier run on h, so that the node gets the
// subnet that the pods are in.
func (s stack) lastSubnets(h *netlab.Host) string {
	var env string
	if s.has(h.Subnet.Addr()) {
		env += fmt.Sprintf("FLANNEL_NETWORK=%s\nFLANNEL_SUBNET=%s/24\n", netlab.Network, h.Gateway())
	}
	if s.has(h.Subnet6.Addr()) {
		env += fmt.Sprintf("FLANNEL_IPV6_NETWORK=%s\nFLANNEL_IPV6_SUBNET=%s/64\n", netlab.Network6, h.Gateway6())
	}
	return env
}

// kind is what runs on a host of a cluster.
type kind struct {
	name    string
	backend string // of the network's configuration when it starts, JSON; empty: that of the cluster
	start   func(c *cluster, i int) node
}

// node is a running twilld or stock flannel.
type node interface {
	// podMTU is the MTU in its subnet.env, for the CNI plugin.
	podMTU() int
}

// twill is a twilld with more flags than those that every test needs.
func twill(name string, flags ...string) kind {
	return kind{name: name, start: func(c *cluster, i int) node {
		d := c.daemon(i, flags...)
		d.start()
		d.waitReady()
		return d
	}}
}

// podMTU implements node.
func (d *daemon) podMTU() int {
	d.t.Helper()
	return mtuOf(d.t, d.env())
}

// mtuOf returns the MTU in a subnet.env.
func mtuOf(t testing.TB, env string) (mtu int) {
	t.Helper()
	_, value, _ := strings.Cut(env, "FLANNEL_MTU=")
	if _, err := fmt.Sscan(value, &mtu); err != nil {
		t.Fatalf("subnet.env without an MTU: %v\n%s", err, env)
	}
	return mtu
}

// clusterOptions say what newCluster builds. The zero value is two nodes whose
// pods have IPv4 addresses.
type clusterOptions struct {
	netlab.Options        // Hosts is the number of nodes
	backend        string // of the network's configuration, JSON
	stack          stack  // ipv4Stack if empty
	ipv6Underlay   bool   // remove the IPv4 addresses from the underlay
	ipv4Underlay   bool   // remove the IPv6 addresses from the underlay
	routed         bool   // put the last node into another subnet, behind a router
}

// cluster is a number of hosts with a pod each and an etcd that all of them
// reach. The test starts what runs on the hosts.
//
//	pod-a ── host a ─┬─ … ─ host c ── pod-c
//	                 └─ etcd
//
// Routed, the host of etcd is a router as well:
//
//	pod-a ── host a ─┬─ host b ── pod-b     172.31.9.0/24,  fd00:172:31:9::/64
//	                 └─ etcd, router
//	                      └─ host c ── pod-c     172.31.10.0/24, fd00:172:31:10::/64
type cluster struct {
	*etcdLab
	t       *testing.T
	stack   stack
	backend string
	nodes   []*netlab.Host
	running map[int]node
}

func newCluster(t *testing.T, opts clusterOptions) *cluster {
	t.Helper()
	if opts.stack == "" {
		opts.stack = ipv4Stack
	}
	if opts.Hosts == 0 {
		opts.Hosts = 2
	}
	opts.Hosts++
	l := &lab{Topology: netlabtest.New(t, opts.Options), t: t}
	last := len(l.Hosts) - 1
	for _, h := range l.Hosts {
		// A host that drops packets whose answers would take another path shows
		// whether two nodes have chosen the same (RFC 3704 §2.2).
		testkit.Must(t, h.NS.Sysctl("net/ipv4/conf/all/rp_filter", "1"))
	}
	if opts.routed {
		behindRouter(t, l.Hosts[:last], l.Hosts[last])
	}
	for _, h := range l.Hosts {
		if opts.ipv6Underlay {
			l.dropIPv4(h)
		}
		if opts.ipv4Underlay {
			testkit.Must(t, h.NS.Sysctl("net/ipv6/conf/"+netlab.UnderlayLink+"/disable_ipv6", "1"))
			h.Addr6 = netip.Addr{}
		}
	}
	c := &cluster{t: t, etcdLab: serveEtcd(t, l), stack: opts.stack, backend: opts.backend, nodes: l.Hosts[:last], running: make(map[int]node)}
	c.configure(opts.backend)
	return c
}

// configure writes the network's configuration with a backend.
func (c *cluster) configure(backend string) {
	c.t.Helper()
	c.put("config", c.stack.config(backend))
}

// daemon prepares a twilld for host number i.
func (c *cluster) daemon(i int, flags ...string) *daemon {
	c.t.Helper()
	d := newDaemon(c.t, c.nodes[i].NS, "", flags...)
	d.readEtcd(c.endpoint())
	d.previous = c.stack.lastSubnets(c.nodes[i])
	return d
}

// threeHosts are three hosts of the usual kind.
var threeHosts = netlab.Options{Hosts: 3}

// run starts nodes on the hosts in turn and gives the pods the MTU of their
// node. Those that want a configuration of their own read it at their
// start and never again, so they come first. Peers may not know of each other
// yet.
func (c *cluster) run(kinds ...kind) {
	c.t.Helper()
	for _, own := range []bool{true, false} {
		for i, k := range kinds {
			if (k.backend != "") == own {
				c.start(i, k)
			}
		}
	}
}

// start starts a node on host number i and gives its pods its MTU.
func (c *cluster) start(i int, k kind) {
	c.t.Helper()
	if k.backend != "" {
		c.configure(k.backend)
	}
	c.running[i] = k.start(c, i)
	if k.backend != "" {
		c.configure(c.backend)
	}
	c.setPodMTU(i, c.running[i].podMTU())
}

// runTwill starts a twilld with these flags on each host, and waits until their
// pods talk.
func (c *cluster) runTwill(flags ...string) {
	c.t.Helper()
	var kinds []kind
	for _, h := range c.nodes {
		kinds = append(kinds, twill(h.Letter, flags...))
	}
	c.run(kinds...)
	c.waitTalk()
}

// setPodMTU sets the MTU of the pods of host number i, as a CNI plugin does.
func (c *cluster) setPodMTU(i, mtu int) {
	c.t.Helper()
	h := c.nodes[i]
	for _, l := range []struct {
		ns   *netlab.Namespace
		name string
	}{{h.NS, "cni0"}, {h.NS, "veth0"}, {h.Pods[0].NS, "eth0"}} {
		link, err := l.ns.Netlink().LinkByName(l.name)
		testkit.Must(c.t, err)
		testkit.Must(c.t, l.ns.Netlink().LinkSetMTU(link, mtu))
	}
}

// addrs are the addresses of the pod of host number i, IPv4 first.
func (c *cluster) addrs(i int) []netip.Addr {
	p := c.pod(i)
	return slices.DeleteFunc([]netip.Addr{p.Addr, p.Addr6}, func(a netip.Addr) bool { return !c.stack.has(a) })
}

// waitTalk waits until each pod of a running node reaches every other.
func (c *cluster) waitTalk() {
	c.t.Helper()
	for i := range c.running {
		for j := range c.running {
			if i != j {
				c.waitReach(i, j)
			}
		}
	}
}

// waitReach waits until the pod of host number i has an answer from that of
// host number j, which requires both directions.
func (c *cluster) waitReach(i, j int) {
	c.t.Helper()
	for _, addr := range c.addrs(j) {
		testkit.Eventually(c.t, fmt.Sprintf("%s reaches %s", c.pod(i).NS, addr), func() bool { return pingOnce(c.pod(i), addr) == nil })
	}
}

// expectPair checks what a user notices of the path between the pods of hosts
// number i and j, in both directions and of each family: the MTU that a node of
// ours announces to its pods fits into the path, packets as large as the MTU of
// both pods pass whole, a pod that sends one of more than pathMTU bytes learns it,
// and TCP moves bytes unchanged. pathMTU is by family, IPv4 first.
func (c *cluster) expectPair(t *testing.T, i, j int, pathMTU [2]int) {
	t.Helper()
	c.waitReach(i, j)
	for _, way := range [][2]int{{i, j}, {j, i}} {
		from, to := c.pod(way[0]), c.pod(way[1])
		for _, addr := range c.addrs(way[1]) {
			path, mtu := ofPath(pathMTU, addr), c.running[way[0]].podMTU()
			if _, own := c.running[way[0]].(*daemon); own && mtu > path {
				t.Errorf("subnet.env of host %s has MTU %d, but only %d bytes fit the path to %s", c.nodes[way[0]].Letter, mtu, path, addr)
			}
			// Stock flannel announces what fits into IPv4, for either family.
			largest := min(mtu, c.running[way[1]].podMTU(), path)
			if err := ping(from, addr, largest); err != nil {
				t.Errorf("ping of %d bytes from %s: %v", largest, from.NS, err)
			}
			if err := (streams{flows: 2, up: 4 << 20, down: 4 << 20}).run(from, to, addr); err != nil {
				t.Errorf("TCP from %s to %s: %v", from.NS, addr, err)
			}
		}
	}
	// Pods that do not know the MTU find out.
	for _, k := range []int{i, j} {
		c.setPodMTU(k, c.underlayLink(k).Attrs().MTU+100)
		defer c.setPodMTU(k, c.running[k].podMTU())
	}
	for _, way := range [][2]int{{i, j}, {j, i}} {
		for _, addr := range c.addrs(way[1]) {
			expectPathMTU(t, c.pod(way[0]), addr, ofPath(pathMTU, addr))
		}
	}
}

// ofPath is the one of the family of addr.
func ofPath(pathMTU [2]int, addr netip.Addr) int {
	if addr.Is4() {
		return pathMTU[0]
	}
	return pathMTU[1]
}
