package netlab

import (
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// The addresses of every topology. Host number i, counted from 1, has the
// underlay addresses 172.31.9.(10+i) and fd00:172:31:9::1<i>, and the pod
// subnets number i.
var (
	Network  = netip.MustParsePrefix("10.5.0.0/16")
	Network6 = netip.MustParsePrefix("fd00:10:5::/48")
)

// UnderlayLink is the interface of a host that leads to the other hosts.
const UnderlayLink = "eth0"

// bridgeLink is the bridge of a host that its pods are attached to.
const bridgeLink = "cni0"

// WireKind determines how the links between hosts treat large packets.
type WireKind string

const (
	// Super is a veth with default settings: segmentation is left to the receiver, so
	// packets of up to 64 KiB cross whole.
	Super WireKind = "super"
	// MTU is a veth that behaves as a plain network card: TSO, GSO and USO
	// off, GRO on, so only frames of at most the MTU cross.
	MTU WireKind = "mtu"
)

// ParseWire reads the name of a kind of wire.
func ParseWire(name string) (WireKind, error) {
	if kind := WireKind(name); kind == Super || kind == MTU {
		return kind, nil
	}
	return "", fmt.Errorf("unknown wire %q; want %s or %s", name, Super, MTU)
}

// Options describe what to build. The zero value is two hosts with a pod each and
// a Super wire of MTU 1500.
type Options struct {
	Hosts int      // 2 if zero, at most 99
	Pods  int      // on each host, 1 if zero, at most 9
	Wire  WireKind // Super if empty, MTU if empty and impaired
	MTU   int      // of the wire, 1500 if zero
	// Loss is the fraction of IPv4 and IPv6 frames that are lost on the wire. It
	// needs nft(8). On a Super wire whole super-packets are lost.
	Loss float64
	// Impair, if not nil, puts a Relay on the wire, which must be of kind MTU
	// and have no Loss.
	Impair *Impairment
	// NamePrefix, if not empty, names the namespaces "<prefix>a",
	// "<prefix>pod-a" and so on under /run/netns.
	NamePrefix string
}

// Topology is a number of hosts on one wire.
type Topology struct {
	Hosts []*Host
	Relay *Relay // nil unless Options.Impair is set
	opts  Options
	wire  *Namespace // nil if two hosts share a veth pair
}

// Host is one node.
type Host struct {
	NS      *Namespace
	Letter  string     // "a" to "z", then "a2", "b2", …
	Addr    netip.Addr // underlay, on eth0
	Addr6   netip.Addr
	Subnet  netip.Prefix // of its pods
	Subnet6 netip.Prefix
	Pods    []*Pod
}

// Pod is a namespace behind a host's bridge.
type Pod struct {
	NS    *Namespace
	Addr  netip.Addr
	Addr6 netip.Addr
}

// NewTopology builds what opts describe. If it fails, it leaves nothing behind.
func NewTopology(opts Options) (*Topology, error) {
	if opts.Hosts == 0 {
		opts.Hosts = 2
	}
	if opts.Pods == 0 {
		opts.Pods = 1
	}
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	if opts.Wire == "" {
		opts.Wire = Super
		if opts.Impair != nil {
			opts.Wire = MTU
		}
	}
	if _, err := ParseWire(string(opts.Wire)); err != nil {
		return nil, fmt.Errorf("create topology: %w", err)
	}
	if opts.Impair != nil && opts.Wire != MTU {
		return nil, fmt.Errorf("create topology: an impaired wire must be of kind %q", MTU)
	}
	if opts.Loss < 0 || opts.Loss > 1 || opts.Loss > 0 && opts.Impair != nil {
		return nil, fmt.Errorf("create topology: loss %g on the wire (from 0 to 1, and 0 with a relay)", opts.Loss)
	}
	if opts.Hosts > 99 || opts.Pods > 9 {
		return nil, fmt.Errorf("create topology: %d hosts with %d pods each (at most 99 and 9)", opts.Hosts, opts.Pods)
	}
	t := &Topology{opts: opts}
	if err := t.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("create topology: %w", err), t.Close())
	}
	return t, nil
}

func (t *Topology) build() error {
	for i := range t.opts.Hosts {
		if err := t.addHost(i + 1); err != nil {
			return err
		}
	}
	if err := t.connect(); err != nil {
		return err
	}
	for _, h := range t.Hosts {
		if err := h.setUnderlay(t.opts); err != nil {
			return err
		}
	}
	return nil
}

// namespace creates a namespace, named if the options request names.
func (t *Topology) namespace(name, label string) (*Namespace, error) {
	if t.opts.NamePrefix == "" {
		return New(label)
	}
	return NewNamed(t.opts.NamePrefix + name)
}

// SetPodMTU sets the MTU of every pod's interface, its peer and the bridge, as
// a CNI plugin does with FLANNEL_MTU.
func (t *Topology) SetPodMTU(mtu int) error {
	for _, h := range t.Hosts {
		links := []string{bridgeLink}
		for i := range h.Pods {
			links = append(links, vethName(i))
		}
		for _, link := range links {
			if err := h.NS.setMTU(link, mtu); err != nil {
				return err
			}
		}
		for _, p := range h.Pods {
			if err := p.NS.setMTU("eth0", mtu); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Namespace) setMTU(link string, mtu int) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", n, link, err)
	}
	if err := n.nl.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("%s: set MTU of %s to %d: %w", n, link, mtu, err)
	}
	return nil
}

// namespaces lists all of the topology.
func (t *Topology) namespaces() []*Namespace {
	var all []*Namespace
	for _, h := range t.Hosts {
		all = append(all, h.NS)
		for _, p := range h.Pods {
			all = append(all, p.NS)
		}
	}
	if t.wire != nil {
		all = append(all, t.wire)
	}
	return all
}

// Close removes everything, named or not, and kills the processes that were
// started through Namespace.Command. It may be called more than once.
func (t *Topology) Close() error {
	var errs []error
	if t.Relay != nil {
		errs = append(errs, t.Relay.Close())
	}
	for _, n := range t.namespaces() {
		errs = append(errs, n.Close())
	}
	return errors.Join(errs...)
}

// Detach releases a topology with names and leaves it in place. A relay does
// not outlive its process.
func (t *Topology) Detach() error {
	var errs []error
	for _, n := range t.namespaces() {
		errs = append(errs, n.Detach())
	}
	return errors.Join(errs...)
}

// Dump writes the links with their counters, the addresses, routes and
// neighbours of all namespaces, for a test that has failed.
func (t *Topology) Dump(w io.Writer) {
	for _, n := range t.namespaces() {
		n.Dump(w)
	}
}

// Dump writes the links with their counters, the addresses, routes and
// neighbours of the namespace.
func (n *Namespace) Dump(w io.Writer) {
	fmt.Fprintf(w, "== %s\n", n)
	links, err := n.nl.LinkList()
	if err != nil {
		fmt.Fprintf(w, "list links: %v\n", err)
	}
	names := make(map[int]string)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		fmt.Fprintf(w, "link %s %s mtu %d %s", a.Name, l.Type(), a.MTU, a.OperState)
		if s := a.Statistics; s != nil {
			fmt.Fprintf(w, " rx %d (%d dropped, %d errors) tx %d (%d dropped, %d errors)",
				s.RxPackets, s.RxDropped, s.RxErrors, s.TxPackets, s.TxDropped, s.TxErrors)
		}
		fmt.Fprintln(w)
		addrs, _ := n.nl.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			fmt.Fprintf(w, "  addr %s\n", a.IPNet)
		}
	}
	routes, _ := n.nl.RouteList(nil, netlink.FAMILY_ALL)
	for _, r := range routes {
		fmt.Fprintf(w, "route %s via %v dev %s\n", r.Dst, r.Gw, names[r.LinkIndex])
	}
	neighs, _ := n.nl.NeighList(0, netlink.FAMILY_ALL)
	for _, e := range neighs {
		fmt.Fprintf(w, "neigh %s %s dev %s state %#x\n", e.IP, e.HardwareAddr, names[e.LinkIndex], e.State)
	}
}
