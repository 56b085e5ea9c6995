package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// tables is what backends have made of the hosts, and of etcd, one fact a line:
// flannel's links with their addresses, the routes of table main, neighbours
// that a program has set, forwarding entries of VTEPs, leases. MAC addresses, of
// which no two runs have the same, have names.
func (c *cluster) tables() string {
	c.t.Helper()
	names := c.macNames()
	var b strings.Builder
	for _, h := range c.nodes {
		fmt.Fprintf(&b, "host %s\n", h.Letter)
		for _, fact := range slices.Sorted(slices.Values(facts(c.t, h.NS, names))) {
			fmt.Fprintf(&b, "  %s\n", fact)
		}
	}
	b.WriteString("etcd\n")
	entries := c.entries()
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		fmt.Fprintf(&b, "  %s %s\n", strings.TrimPrefix(key, etcdPrefix+"/"), names.in(entries[key]))
	}
	return b.String()
}

// macNames are names for MAC addresses as they are written.
type macNames map[string]string

// in replaces the addresses in s by their names.
func (m macNames) in(s string) string {
	for mac, name := range m {
		s = strings.ReplaceAll(s, mac, name)
	}
	return s
}

// macNames names the VTEPs of all hosts.
func (c *cluster) macNames() macNames {
	c.t.Helper()
	names := make(macNames)
	for _, h := range c.nodes {
		for _, l := range flannelLinks(c.t, h.NS) {
			if mac := l.Attrs().HardwareAddr; len(mac) > 0 {
				names[mac.String()] = fmt.Sprintf("<%s of %s>", l.Attrs().Name, h.Letter)
			}
		}
	}
	return names
}

// flannelLinks are the links that have names like flannel's.
func flannelLinks(t testing.TB, ns *netlab.Namespace) []netlink.Link {
	t.Helper()
	links, err := ns.Netlink().LinkList()
	testkit.Must(t, err)
	return slices.DeleteFunc(links, func(l netlink.Link) bool { return !strings.HasPrefix(l.Attrs().Name, "flannel") })
}

// facts are the lines of a host, all from one moment.
func facts(t testing.TB, ns *netlab.Namespace, macs macNames) (all []string) {
	t.Helper()
	var err error
	if !testkit.Within(testkit.Patience, func() bool {
		all, err = factsOnce(ns, macs)
		return err == nil
	}) {
		t.Fatalf("%s: %v", ns, err)
	}
	return all
}

// factsOnce fails if a link disappears meanwhile.
func factsOnce(ns *netlab.Namespace, macs macNames) (all []string, err error) {
	nl := ns.Netlink()
	links, err := nl.LinkList()
	if err != nil {
		return nil, err
	}
	add := func(format string, args ...any) {
		all = append(all, macs.in(strings.TrimRight(fmt.Sprintf(format, args...), " ")))
	}
	name := make(map[int]string)
	for _, l := range links {
		name[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		if !strings.HasPrefix(a.Name, "flannel") {
			continue
		}
		add("link %s %s mtu %d flags %s address %s", a.Name, l.Type(), a.MTU, a.Flags&^net.FlagRunning, a.HardwareAddr)
		if v, ok := l.(*netlink.Vxlan); ok {
			add("vxlan %s %s", a.Name, vxlanOptions(v, name))
		}
		ra, err := sysctl(ns, "net/ipv6/conf/"+a.Name+"/accept_ra")
		if err != nil {
			return nil, err
		}
		add("accept_ra %s %s", a.Name, ra)
		addrs, err := nl.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return nil, err
		}
		for _, addr := range addrs {
			add("address %s dev %s scope %s", macs.linkLocal(addr.IPNet, a.HardwareAddr), a.Name, netlink.Scope(addr.Scope))
		}
	}
	routes, err := nl.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if dev := name[r.LinkIndex]; r.Type == unix.RTN_UNICAST && (!r.Dst.IP.IsLinkLocalUnicast() || strings.HasPrefix(dev, "flannel")) {
			add("route %s via %s dev %s proto %s scope %s metric %d %s", r.Dst, r.Gw, dev, r.Protocol, r.Scope, r.Priority, strings.Join(r.ListFlags(), " "))
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		entries, err := nl.NeighList(0, family)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			dev := name[e.LinkIndex]
			switch {
			case e.State&netlink.NUD_PERMANENT == 0:
			case family != unix.AF_BRIDGE:
				add("neighbour %s is %s dev %s permanent", e.IP, e.HardwareAddr, dev)
			case strings.HasPrefix(dev, "flannel"):
				add("fdb %s dst %s dev %s permanent flags %#x", e.HardwareAddr, e.IP, dev, e.Flags)
			}
		}
	}
	return all, nil
}

// devices are those through which a node sends to the pods of a peer, by family,
// IPv4 first.
type devices [2]string

var (
	viaVXLAN = devices{"flannel.1", "flannel-v6.1"}
	viaUDP   = devices{"flannel0", "flannel0"}
	viaLink  = devices{netlab.UnderlayLink, netlab.UnderlayLink}
)

// devicesTo are the devices through which host number i sends to the pod of host
// number j, and how many routes of their own the pod's subnets have. What the
// pods do not have is as in like.
func (c *cluster) devicesTo(i, j int, like devices) (found devices, routes [2]int) {
	c.t.Helper()
	nl := c.nodes[i].NS.Netlink()
	found = like
	for _, addr := range c.addrs(j) {
		k, subnet := 0, c.nodes[j].Subnet
		if addr.Is6() {
			k, subnet = 1, c.nodes[j].Subnet6
		}
		found[k] = "nothing"
		if to, err := nl.RouteGet(addr.AsSlice()); err == nil {
			// It may have gone in between.
			if link, err := nl.LinkByIndex(to[0].LinkIndex); err == nil {
				found[k] = link.Attrs().Name
			}
		}
		own, err := nl.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Dst: netlab.IPNet(subnet)}, netlink.RT_FILTER_DST)
		testkit.Must(c.t, err)
		routes[k] = len(own)
	}
	return found, routes
}

// sendsThrough reports whether host number i sends through want to the pod of host
// number j, and has one route at most to each of its subnets.
func (c *cluster) sendsThrough(i, j int, want devices) bool {
	c.t.Helper()
	found, routes := c.devicesTo(i, j, want)
	return found == want && max(routes[0], routes[1]) <= 1
}

// expectRoutes fails the test unless sendsThrough returns true.
func (c *cluster) expectRoutes(t *testing.T, i, j int, want devices) {
	t.Helper()
	if !c.sendsThrough(i, j, want) {
		found, routes := c.devicesTo(i, j, want)
		t.Errorf("host %s sends to the pods of host %s through %q, with %v routes of their own; want it through %q, with one route at most",
			c.nodes[i].Letter, c.nodes[j].Letter, found, routes, want)
	}
}

// linkLocal names an IPv6 address that the kernel has derived from a MAC address
// (RFC 4291, appendix A).
func (m macNames) linkLocal(p *net.IPNet, mac net.HardwareAddr) string {
	if !p.IP.IsLinkLocalUnicast() || len(mac) != 6 {
		return p.String()
	}
	ip := net.IP{0xfe, 0x80, 15: 0}
	copy(ip[8:], []byte{mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
	if !ip.Equal(p.IP) {
		return p.String()
	}
	return "fe80::" + m[mac.String()]
}

// vxlanOptions are those that a VXLAN device was made with, as JSON: what is
// not set is left out.
func vxlanOptions(v *netlink.Vxlan, name map[int]string) string {
	// All fields, so that none is forgotten.
	text, _ := json.Marshal(struct {
		*netlink.Vxlan
		LinkAttrs, Index, VtepDevIndex any `json:",omitempty"`
		Dev                            string
	}{Vxlan: v, Dev: name[v.VtepDevIndex]})
	var options map[string]any
	_ = json.Unmarshal(text, &options)
	maps.DeleteFunc(options, func(key string, value any) bool {
		_, own := linkAttrKeys[key]
		return own || value == nil || value == false || value == 0.0 || value == ""
	})
	text, _ = json.Marshal(options)
	return string(text)
}

// linkAttrKeys are the keys that every link has.
var linkAttrKeys = func() map[string]any {
	text, _ := json.Marshal(netlink.LinkAttrs{})
	var keys map[string]any
	_ = json.Unmarshal(text, &keys)
	return keys
}()

func sysctl(ns *netlab.Namespace, key string) (string, error) {
	var text []byte
	err := ns.Do(func() (err error) {
		text, err = os.ReadFile(filepath.Join("/proc/sys", key))
		return err
	})
	return strings.TrimSpace(string(text)), err
}

// differences are the lines that only one of two texts has, with their host.
func differences(want, got string) string {
	has := func(text string) map[string]bool {
		all, host := make(map[string]bool), ""
		for line := range strings.SplitSeq(text, "\n") {
			if !strings.HasPrefix(line, " ") {
				host = line
			}
			all[host+line] = true
		}
		return all
	}
	var lines []string
	one, other := has(want), has(got)
	for line := range one {
		if !other[line] {
			lines = append(lines, "missing: "+line)
		}
	}
	for line := range other {
		if !one[line] {
			lines = append(lines, "unexpected: "+line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
