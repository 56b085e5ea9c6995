package trace

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/echo"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics"
)

// Host is what is known of one of the two nodes: all that its steps follow from.
type Host struct {
	Document *status.Document // nil: no twilld answers
	Findings []doctor.Finding
	Firewall *doctor.Firewall
	Problem  string // why Firewall is nil

	Other    netip.Addr // public address of the other node; invalid: unknown
	Overhead int        // bytes that the backend puts before a packet, IP header included
	Local    bool       // the end of the way here is the node itself, not a pod
	Links    map[string]Link

	Pod      Route  // to the pod of this node
	Bridge   string // the interface with an address among the pods'; "" if there is none
	Way      Route  // of the packet itself, as the kernel looks it up
	Back     Route  // of the answer, on the receiving node
	Underlay Route  // to the other node
	Tunnel   string // the device that the packet leaves by or arrives on
	Hop      Hop    // of Way, if Tunnel is a VXLAN device
	// PodState is the state of the kernel's neighbour entry for the pod: "" if there is
	// none, "failed" if it does not answer.
	PodState string
}

// Link is a network interface.
type Link struct {
	MTU  int
	Up   bool
	Kind string // "veth", "vxlan"
	VNI  int    // of a VXLAN device
	Port int
}

// Route is what the kernel looks up for an address.
type Route struct {
	Dev   string
	Via   netip.Addr // invalid: none
	Dst   string     // the prefix of the route
	Table int
	MTU   int  // of the route; 0: the device's
	Local bool // it leads to the host itself
	Err   error
}

// Hop is what a VXLAN device knows of the next hop.
type Hop struct {
	MAC string     // in the neighbour table; "" if there is none
	To  netip.Addr // of the MAC in the forwarding database; invalid if there is none
}

// peer returns the peer that an address belongs to, or nil.
func (h *Host) peer(a netip.Addr) *status.Peer {
	if h.Document == nil || h.Document.Dataplane == nil {
		return nil
	}
	for i, p := range h.Document.Dataplane.Peers {
		if slices.ContainsFunc(p.Subnets, func(s netip.Prefix) bool { return s.Contains(a) }) {
			return &h.Document.Dataplane.Peers[i]
		}
	}
	return nil
}

// ownSubnets returns the subnets of the node's lease.
func (h *Host) ownSubnets() []netip.Prefix {
	if h.Document == nil {
		return nil
	}
	return h.Document.Lease.Subnets()
}

// overhead returns the number of bytes that the backend of a peer puts before a packet,
// with an outer address to; that of a VXLAN device has the family of the packet.
func overhead(p *status.Peer, to netip.Addr) int {
	switch {
	case p == nil || p.Backend == status.KindHostGW:
		return 0
	case p.Backend == status.KindVXLAN:
		return vxlan.Overhead(to)
	}
	return echo.IPHeaderLen(p.PublicIP) + udpHeader
}

// devices returns the names of the devices of the backend that leads to p, for packets of
// the family of a. With the kernel path there are two.
func (h *Host) devices(p *status.Peer, a netip.Addr) (names []string) {
	if h.Document == nil || h.Document.Dataplane == nil || p == nil {
		return nil
	}
	for _, d := range h.Document.Dataplane.Devices {
		switch way := p.BackendName(); {
		case way == status.KindHostGW && d.Kind == status.KindHostGW,
			way == status.KindVXLAN && d.Kind == status.KindVXLAN && strings.HasPrefix(d.Name, "flannel-v6") == a.Is6():
			names = append(names, d.Name)
		case way == "udp" && (d.Kind == status.KindOffload || d.Kind == status.KindPlain):
			names = append(names, d.Name)
			if p.Kernel {
				names = append(names, backend.KernelInput(d.Name))
			}
		}
	}
	return names
}

// Question is what is asked of a host.
type Question struct {
	Packet   Packet
	Sending  bool       // Packet.From is here; otherwise Packet.To is
	Other    netip.Addr // see Host
	Overhead int        // see Host; found out if Sending
}

// ReadHost reads what the steps of a packet follow from, in the network namespace of the
// calling thread.
func ReadHost(ctx context.Context, n doctor.Node, q Question) *Host {
	h := &Host{Document: n.Daemon, Other: q.Other, Overhead: q.Overhead, Links: map[string]Link{}}
	p, here, there := q.Packet, q.Packet.To, q.Packet.From
	if q.Sending {
		here, there = there, here
	}
	peer := h.peer(there)
	var err error
	if h.Firewall, err = doctor.ReadFirewall(ctx, p.To.Is6()); err != nil {
		h.Problem = err.Error()
	}
	h.Findings = doctor.Examine(ctx, about(n, h.Other), checks...)
	h.readLinks()
	h.Pod = lookUp(here, netlink.RouteGetOptions{})
	h.Local = h.Pod.Local
	if devices := h.devices(peer, p.To); len(devices) > 0 {
		h.Tunnel = devices[0]
	}
	from := netlink.RouteGetOptions{SrcAddr: p.From.AsSlice()}
	switch {
	case !q.Sending:
		from.Iif, h.Back = h.Tunnel, lookUp(there, netlink.RouteGetOptions{})
	case !h.Local:
		from.Iif = h.Pod.Dev
	}
	if from.Iif == "" && !(q.Sending && h.Local) {
		from.SrcAddr = nil // the kernel refuses sources of others without an interface
	}
	h.Way = lookUp(p.To, from)
	outer := h.Other
	if q.Sending {
		h.Overhead = overhead(peer, outer)
		if h.Links[h.Way.Dev].Kind == status.KindVXLAN {
			h.Hop = hopOf(h.Way)
		}
		if h.Hop.To.IsValid() {
			outer, h.Overhead = h.Hop.To, overhead(peer, h.Hop.To)
		}
	}
	if outer.IsValid() {
		h.Underlay = lookUp(outer, netlink.RouteGetOptions{})
	}
	h.PodState = neighbour(h.Pod.Dev, here)
	return h
}

// checks are those of doctor that concern the way of a packet.
var checks = []string{"daemon", "own-subnet", "devices", "forwarding", "rp-filter", "rules", "udp-port", "kernel-path", "peers"}

// about returns what doctor is to know, with one peer only.
func about(n doctor.Node, peer netip.Addr) doctor.Node {
	if n.Daemon == nil || n.Daemon.Dataplane == nil {
		return n
	}
	d, dp := *n.Daemon, *n.Daemon.Dataplane
	dp.Peers = slices.DeleteFunc(slices.Clone(dp.Peers), func(p status.Peer) bool { return p.PublicIP != peer })
	d.Dataplane = &dp
	n.Daemon = &d
	return n
}

func (h *Host) readLinks() {
	links, _ := netlink.LinkList() // of what is missing, the steps say that it is gone
	for _, l := range links {
		one := Link{MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0, Kind: l.Type()}
		if v, ok := l.(*netlink.Vxlan); ok {
			one.VNI, one.Port = v.VxlanId, v.Port
		}
		h.Links[l.Attrs().Name] = one
		addrs, _ := netlink.AddrList(l, netlink.FAMILY_ALL)
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			among := func(s netip.Prefix) bool { return s.Contains(ip.Unmap()) }
			if l.Type() == "bridge" && slices.ContainsFunc(h.ownSubnets(), among) {
				h.Bridge = l.Attrs().Name
			}
		}
	}
}

// lookUp asks the kernel for the route to an address.
func lookUp(to netip.Addr, o netlink.RouteGetOptions) (r Route) {
	found, err := netlink.RouteGetWithOptions(to.AsSlice(), &o)
	if err != nil || len(found) == 0 {
		return Route{Err: err}
	}
	r.MTU, r.Local = found[0].MTU, found[0].Type == unix.RTN_LOCAL
	if via, ok := netip.AddrFromSlice(found[0].Gw); ok {
		r.Via = via.Unmap()
	}
	if link, err := netlink.LinkByIndex(found[0].LinkIndex); err == nil {
		r.Dev = link.Attrs().Name
	}
	o.FIBMatch = true // Linux 4.13
	if match, err := netlink.RouteGetWithOptions(to.AsSlice(), &o); err == nil && len(match) > 0 {
		r.Table = match[0].Table
		if r.Dst = "default"; match[0].Dst != nil {
			r.Dst = match[0].Dst.String()
		}
	}
	return r
}

// hopOf returns what the VXLAN device of a route knows of its gateway.
func hopOf(r Route) (hop Hop) {
	link, err := netlink.LinkByName(r.Dev)
	if err != nil {
		return hop
	}
	all, _ := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	for _, n := range all {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == r.Via && len(n.HardwareAddr) > 0 {
			hop.MAC = n.HardwareAddr.String()
		}
	}
	entries, _ := netlink.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
	for _, n := range entries {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && n.HardwareAddr.String() == hop.MAC {
			hop.To = ip.Unmap()
		}
	}
	return hop
}

// neighbour returns the state of the entry for an address on an interface.
func neighbour(dev string, a netip.Addr) string {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return ""
	}
	all, _ := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	for _, n := range all {
		if ip, ok := netip.AddrFromSlice(n.IP); !ok || ip.Unmap() != a {
			continue
		}
		switch {
		case n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE) != 0:
			return "failed"
		case n.State != netlink.NUD_NONE:
			return "known"
		}
	}
	return ""
}

// Counter counts what may have happened to a probe.
type Counter struct {
	Kind   string `json:"kind"` // rule, twilld, device, kernel
	Name   string `json:"name"`
	Count  uint64 `json:"packets"`
	Remedy string `json:"remedy,omitempty"`
}

// Kinds of counters.
const (
	byRule   = "rule"
	byTwilld = "twilld"
	byDevice = "device"
	byKernel = "kernel"
)

// ReadCounters reads the counters of this host's interfaces, firewall and kernel, and takes
// those of twilld from d, which may be nil.
func ReadCounters(d *status.Document, f *doctor.Firewall) (all []Counter) {
	if f != nil {
		for rule, n := range f.Drops() {
			all = append(all, Counter{byRule, rule, n, f.Remedy(rule)})
		}
	}
	if d != nil {
		for reason, n := range d.Drops.TX {
			all = append(all, Counter{byTwilld, reason + " sending", n, remedies[reason]})
		}
		for reason, n := range d.Drops.RX {
			all = append(all, Counter{byTwilld, reason + " receiving", n, remedies[reason]})
		}
	}
	links, _ := netlink.LinkList()
	for _, l := range links {
		if s := l.Attrs().Statistics; s != nil {
			name := l.Attrs().Name
			all = append(all, Counter{byDevice, name + " dropped or failed to receive", s.RxDropped + s.RxErrors, ""},
				Counter{byDevice, name + " dropped or failed to send", s.TxDropped + s.TxErrors, ""})
		}
	}
	for _, name := range []string{"netstat", "snmp"} {
		text, _ := os.ReadFile("/proc/thread-self/net/" + name)
		all = append(all, kernelCounters(text)...)
	}
	return all
}

// suspects are the kernel's counters of packets that it drops while it routes them
// (net/ipv4/proc.c).
var suspects = []string{"IPReversePathFilter", "InAddrErrors", "OutNoRoutes", "FragFails", "InHdrErrors"}

// kernelCounters reads a file in the form of /proc/net/snmp: a line of names, and a line of
// values.
func kernelCounters(text []byte) (all []Counter) {
	lines := bufio.NewScanner(bytes.NewReader(text))
	var names []string
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(names) != len(words) || len(words) == 0 || names[0] != words[0] {
			names = words
			continue
		}
		for i, name := range names {
			if n, err := strconv.ParseUint(words[i], 10, 64); err == nil && slices.Contains(suspects, name) {
				all = append(all, Counter{Kind: byKernel, Name: name, Count: n})
			}
		}
		names = nil
	}
	return all
}

// Rose returns by how much counters are higher than before.
func Rose(before, after []Counter) (all []Counter) {
	was := map[Counter]uint64{}
	for _, c := range before {
		was[Counter{Kind: c.Kind, Name: c.Name}] = c.Count
	}
	for _, c := range after {
		if n := was[Counter{Kind: c.Kind, Name: c.Name}]; c.Count > n {
			c.Count -= n
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b Counter) int { return strings.Compare(a.Kind+a.Name, b.Kind+b.Name) })
	return all
}

// sentence describes what has been counted.
func (c Counter) sentence() string {
	switch c.Kind {
	case byRule:
		return fmt.Sprintf("%s dropped %d packets", c.Name, c.Count)
	case byTwilld:
		reason, direction, _ := strings.Cut(c.Name, " ")
		d, _ := metrics.DropNamed(reason)
		return fmt.Sprintf("twilld dropped %d packets %s: %s (%s)", c.Count, direction, reason, d.Meaning())
	case byKernel:
		return fmt.Sprintf("the kernel counted %d packets as %s", c.Count, c.Name)
	}
	return fmt.Sprintf("%s: %d packets", c.Name, c.Count)
}
