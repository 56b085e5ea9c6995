package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/status"
)

// ownSubnet checks that packets for the node's own pods stay on the node: that no
// route leads them elsewhere, and that bridges have addresses in the node's
// subnet.
func (x *examination) ownSubnet(context.Context) []Finding {
	var found []Finding
	subnets := x.ownSubnets()
	for _, s := range subnets {
		routes, err := ForeignRoutes(s, x.outward()...)
		if err != nil {
			found = append(found, warnf("", "%v", err))
		}
		for _, r := range routes {
			found = append(found, badf(r.Delete(), "packets to this node's own pods in %s leave the node through the route %s", s, r))
		}
	}
	bridges, err := bridgeAddrs()
	if err != nil {
		found = append(found, warnf("", "%v", err))
	}
	for _, b := range bridges {
		if f, ok := x.strayBridge(b, subnets); ok {
			found = append(found, f)
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(subnets) == 0:
		return []Finding{warnf(startDaemon, "this node has no subnet yet")}
	}
	return []Finding{okf("routes and bridges keep packets to this node's own pods on the node")}
}

// outward returns the names of the devices that lead to other nodes.
func (x *examination) outward() []string {
	names := x.devices()
	if x.Daemon != nil && x.Daemon.Underlay != nil {
		names = append(names, x.Daemon.Underlay.Name)
	}
	return names
}

// ownSubnets returns the pod subnets of this node, from the daemon or the subnet
// file.
func (x *examination) ownSubnets() []netip.Prefix {
	if x.Daemon != nil && x.Daemon.Lease != nil {
		return x.Daemon.Lease.Subnets()
	}
	return status.Valid(x.Env.Subnet, x.Env.IPv6Subnet)
}

// ForeignRoute is a route that leads packets for a node's own pods elsewhere.
type ForeignRoute struct {
	dst   netip.Prefix
	via   netip.Addr // invalid if there is no gateway
	dev   string     // empty if the route has no device
	kind  string     // "", or a type without a device: "unreachable"
	table int
}

// String returns the route in the syntax of ip-route(8).
func (r ForeignRoute) String() string {
	text := r.dst.String()
	if r.kind != "" {
		text = r.kind + " " + text
	}
	if r.via.IsValid() {
		text += " via " + r.via.String()
	}
	if r.dev != "" {
		text += " dev " + r.dev
	}
	if r.table != unix.RT_TABLE_MAIN {
		text += fmt.Sprintf(" table %d", r.table)
	}
	return text
}

// Delete returns the command that deletes the route.
func (r ForeignRoute) Delete() string {
	if r.dst.Addr().Is6() {
		return "ip -6 route delete " + r.String()
	}
	return "ip route delete " + r.String()
}

// ForeignRoutes returns the routes of all tables, in the network namespace of the
// calling thread, that lead packets for subnet or a part of it to a gateway, into one
// of the devices that lead to other nodes, or nowhere. Routes to bridges and single
// pods have their own device and no gateway. The route of --ip-blackhole-route applies
// only if there is no other.
func ForeignRoutes(subnet netip.Prefix, outward ...string) ([]ForeignRoute, error) {
	family := netlink.FAMILY_V4
	if subnet.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	kinds := map[int]string{unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit"}
	var foreign []ForeignRoute
	for _, r := range all {
		dst := prefixOf(r.Dst)
		if r.Table == unix.RT_TABLE_LOCAL || dst.Bits() < subnet.Bits() || !subnet.Contains(dst.Addr()) {
			continue
		}
		f := ForeignRoute{dst: dst, kind: kinds[r.Type], table: r.Table}
		if r.Type == unix.RTN_UNICAST {
			f.via, _ = netip.AddrFromSlice(r.Gw)
			f.via = f.via.Unmap()
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				f.dev = link.Attrs().Name
			}
		}
		if f.via.IsValid() || f.kind != "" || len(r.MultiPath) > 0 || slices.Contains(outward, f.dev) && !ownDevice(dst, f.dev) {
			foreign = append(foreign, f)
		}
	}
	return foreign, nil
}

// ownDevice reports whether a device has dst as the prefix of one of its addresses, so
// that the kernel created the route.
func ownDevice(dst netip.Prefix, dev string) bool {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return false
	}
	addrs, _ := netlink.AddrList(link, netlink.FAMILY_ALL)
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return prefixOf(a.IPNet) == dst })
}

// prefixOf returns n masked; the invalid prefix for nil.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	if a.Is4In6() && bits <= 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// bridgeAddr is an address of a bridge.
type bridgeAddr struct {
	bridge string
	netip.Prefix
}

// bridgeAddrs lists the addresses of all bridges.
func bridgeAddrs() ([]bridgeAddr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var all []bridgeAddr
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			all = append(all, bridgeAddr{l.Attrs().Name, netip.PrefixFrom(ip.Unmap(), bits)})
		}
	}
	return all, nil
}

// strayBridge reports whether a bridge has an address in the pod network but outside
// this node's subnet: other nodes send the packets for its pods elsewhere.
func (x *examination) strayBridge(b bridgeAddr, own []netip.Prefix) (Finding, bool) {
	inNetwork := slices.ContainsFunc(x.networks(), func(n netip.Prefix) bool { return n.Contains(b.Addr()) })
	inOwn := slices.ContainsFunc(own, func(s netip.Prefix) bool { return s.Contains(b.Addr()) && s.Bits() <= b.Bits() })
	if !inNetwork || inOwn || len(own) == 0 {
		return Finding{}, false
	}
	remedy := "ip link delete " + b.bridge // the CNI plugin creates it again for new pods
	if b.bridge == "docker0" {
		remedy = "twill docker-opts -c && systemctl restart docker"
	}
	return badf(remedy, "the bridge %s has %s, but this node's subnet is %s: packets to its pods go to another node", b.bridge, b.Prefix, own[0]), true
}

// enslaved finds devices of the data plane that are ports of a bridge: packets that
// arrive on them go to the bridge instead of being routed.
func (x *examination) enslaved(context.Context) []Finding {
	var found []Finding
	devices := x.tunnels()
	for _, name := range devices {
		link, err := netlink.LinkByName(name)
		if err != nil {
			found = append(found, badf("journalctl -u twilld", "find device %s: %v", name, err))
			continue
		}
		master := link.Attrs().MasterIndex
		if master == 0 {
			continue
		}
		under := fmt.Sprintf("interface number %d", master)
		if m, err := netlink.LinkByIndex(master); err == nil {
			under = m.Attrs().Name
		}
		found = append(found, badf("ip link set dev "+name+" nomaster", "%s is a port of %s: packets that arrive on it do not reach pods", name, under))
	}
	switch {
	case len(found) > 0:
		return found
	case len(devices) == 0:
		return []Finding{okf("no tunnel device in use")}
	}
	return []Finding{okf("no tunnel device is a port of a bridge")}
}
