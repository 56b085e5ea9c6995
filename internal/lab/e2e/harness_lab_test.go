package e2e

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// engine is how each host's twilld moves packets: flags for the hosts in turn.
type engine struct {
	name  string
	flags [][]string
}

var (
	plainFlags = []string{"--tun-offload=off", "--udp-gso=off", "--udp-gro=off"}

	// offloadEngine uses all offloads of the kernel, and fails where one is
	// missing.
	offloadEngine = engine{"offload", [][]string{{"--tun-offload=on", "--tun-gro=on", "--tun-gro-udp=on", "--udp-gso=on", "--udp-gro=on"}}}
	// plainEngine moves one packet per read and one datagram per message.
	plainEngine = engine{"plain", [][]string{plainFlags}}
	// mixedEngine has the offload engine on host a and the plain one on b.
	mixedEngine = engine{"mixed", [][]string{offloadEngine.flags[0], plainFlags}}

	engines = []engine{offloadEngine, plainEngine, mixedEngine}
)

// forEngines runs a test as a parallel subtest for each engine, in a lab of its
// own with these options.
func forEngines(t *testing.T, opts labOptions, test func(t *testing.T, l *lab)) {
	for _, opts.engine = range engines {
		opts := opts
		t.Run(opts.engine.name, func(t *testing.T) {
			t.Parallel()
			test(t, newLab(t, opts))
		})
	}
}

// wires are the kinds of underlay that make a difference to the data plane.
var wires = []netlab.WireKind{netlab.Super, netlab.MTU}

// forWires is forEngines for each kind of wire.
func forWires(t *testing.T, opts labOptions, test func(t *testing.T, l *lab)) {
	for _, opts.Wire = range wires {
		t.Run(string(opts.Wire), func(t *testing.T) { forEngines(t, opts, test) })
	}
}

// underlays are the address families that datagrams between hosts can have.
var underlays = []struct {
	name string
	ipv6 bool
}{{"over ipv4", false}, {"over ipv6", true}}

// forUnderlays is forEngines for each address family of the underlay.
func forUnderlays(t *testing.T, opts labOptions, test func(t *testing.T, l *lab)) {
	for _, u := range underlays {
		opts.ipv6Underlay = u.ipv6
		t.Run(u.name, func(t *testing.T) { forEngines(t, opts, test) })
	}
}

// labOptions say what newLab builds. The zero value is two hosts with a pod
// each, a super wire with an IPv4 and IPv6 underlay, and the offload engine.
type labOptions struct {
	netlab.Options
	engine       engine
	flags        []string // further ones, for each twilld
	nodes        int      // how many of the hosts have a lease and a twilld; all if zero
	ipv6Underlay bool     // remove the IPv4 addresses from the underlay
	idle         bool     // prepare the daemons, but do not start them
}

// lab is a topology with a twilld on each host that is a node. All of them read
// one lease file.
type lab struct {
	*netlab.Topology
	t         testing.TB
	leaseFile string
	daemons   []*daemon // of the nodes, which are the first hosts

	engine       engine
	ipv6Underlay bool // hosts have only IPv6 addresses
}

// newLab builds a lab and, unless it is to stay idle, starts it.
func newLab(t testing.TB, opts labOptions) *lab {
	t.Helper()
	l := &lab{Topology: netlabtest.New(t, opts.Options), t: t, engine: opts.engine, ipv6Underlay: opts.ipv6Underlay}
	l.leaseFile = filepath.Join(scratchDir(t), "leases.json")
	if opts.ipv6Underlay {
		for _, h := range l.Hosts {
			l.dropIPv4(h)
		}
	}
	if opts.nodes == 0 {
		opts.nodes = len(l.Hosts)
	}
	l.setLeases(l.leases()[:opts.nodes])
	if l.engine.flags == nil {
		l.engine = offloadEngine
	}
	for i, h := range l.Hosts[:opts.nodes] {
		flags := append([]string(nil), l.engine.flags[i%len(l.engine.flags)]...)
		l.daemons = append(l.daemons, newDaemon(t, h.NS, l.leaseFile, append(flags, opts.flags...)...))
	}
	if !opts.idle {
		l.start()
	}
	return l
}

// start starts the daemons, waits until all are ready and gives the pods the
// MTU of the tunnel, as a CNI plugin does.
func (l *lab) start() {
	l.t.Helper()
	for _, d := range l.daemons {
		d.start()
	}
	for _, d := range l.daemons {
		d.waitReady()
	}
	if err := l.SetPodMTU(l.daemons[0].status().Dataplane.MTU()); err != nil {
		l.t.Fatal(err)
	}
}

// dropIPv4 removes the IPv4 address from the interface of h to the other hosts.
func (l *lab) dropIPv4(h *netlab.Host) {
	l.t.Helper()
	nl := h.NS.Netlink()
	link, err := nl.LinkByName(netlab.UnderlayLink)
	if err != nil {
		l.t.Fatal(err)
	}
	addrs, err := nl.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, a := range addrs {
		if err := nl.AddrDel(link, &a); err != nil {
			l.t.Fatalf("%s: delete %s: %v", h.NS, a.IPNet, err)
		}
	}
	h.Addr = netip.Addr{}
}

// addAddr adds an address to a link.
func addAddr(t testing.TB, ns *netlab.Namespace, link string, addr netip.Prefix) {
	t.Helper()
	nl := ns.Netlink()
	dev, err := nl.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	a := &netlink.Addr{IPNet: netlab.IPNet(addr)}
	if addr.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := nl.AddrAdd(dev, a); err != nil {
		t.Fatalf("%s: add %s to %s: %v", ns, addr, link, err)
	}
}

// pod returns the first pod of host number i, counted from 0.
func (l *lab) pod(i int) *netlab.Pod { return l.Hosts[i].Pods[0] }

// underlay returns the address that host number i, counted from 0, sends
// datagrams from.
func (l *lab) underlay(i int) netip.Addr {
	if h := l.Hosts[i]; h.Addr.IsValid() {
		return h.Addr
	}
	return l.Hosts[i].Addr6
}

// leaseEntry is a lease as written in a lease file.
type leaseEntry struct {
	Subnet     netip.Prefix `json:",omitzero"`
	IPv6Subnet netip.Prefix `json:",omitzero"`
	PublicIP   netip.Addr   `json:",omitzero"`
	PublicIPv6 netip.Addr   `json:",omitzero"`

	BackendData json.RawMessage `json:",omitempty"`
}

// leases returns the leases of all hosts.
func (l *lab) leases() []leaseEntry {
	var all []leaseEntry
	for _, h := range l.Hosts {
		all = append(all, leaseEntry{h.Subnet, h.Subnet6, h.Addr, h.Addr6, nil})
	}
	return all
}

// setLeases replaces the lease file of the lab with one that has these leases.
func (l *lab) setLeases(leases []leaseEntry) {
	l.t.Helper()
	writeLeases(l.t, l.leaseFile, leases)
}

// writeLeases writes the lease file of a network of both families. Like an
// operator's tool it renames the new version over the old.
func writeLeases(t testing.TB, path string, leases []leaseEntry) {
	t.Helper()
	text, err := json.MarshalIndent(map[string]any{
		"Network": netlab.Network, "IPv6Network": netlab.Network6, "EnableIPv6": true,
		"Backend": map[string]any{"Type": "udp"},
		"Leases":  leases,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}
