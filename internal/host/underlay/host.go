package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// host is the relevant state of a network namespace.
type host struct {
	links    []link    // sorted by index
	defaults []nexthop // those of the default routes in table main, best first, IPv4 before IPv6
}

type link struct {
	name     string
	altNames []string
	index    int
	mtu      int
	up       bool
	addrs    []address // IPv4 first; within a family, preferred addresses first
}

type address struct {
	netip.Addr
	prefix netip.Prefix // the subnet of the address
	// fault is the reason why the address is not chosen by default; empty:
	// none.
	fault string
	rank  int // lower is better
}

type nexthop struct {
	index   int // that of the link
	ipv6    bool
	metric  int
	gateway netip.Addr // may be invalid
	source  netip.Addr // preferred source address of the route; may be invalid
}

// readHost reads links, addresses and default routes.
func readHost() (h host, err error) {
	err = uninterrupted(func() error {
		h, err = dumpHost()
		return err
	})
	return h, err
}

// uninterrupted repeats a dump, up to ten times, while changes interrupt it.
func uninterrupted(dump func() error) (err error) {
	for range 10 {
		if err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

func dumpHost() (host, error) {
	links, addrs, err := dumpLinks()
	if err != nil {
		return host{}, err
	}
	var h host
	for _, l := range links {
		h.links = append(h.links, linkOf(l, addrs))
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteList(nil, family)
		if err != nil {
			return host{}, fmt.Errorf("list routes: %w", err)
		}
		h.defaults = append(h.defaults, defaultsOf(routes, family == netlink.FAMILY_V6)...)
	}
	return h, nil
}

// dumpLinks lists all links, by index, and all addresses.
func dumpLinks() ([]netlink.Link, []netlink.Addr, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, nil, fmt.Errorf("list links: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	return links, addrs, nil
}

func linkOf(l netlink.Link, addrs []netlink.Addr) link {
	a := l.Attrs()
	return link{
		name: a.Name, altNames: a.AltNames, index: a.Index, mtu: a.MTU,
		up:    a.Flags&net.FlagUp != 0,
		addrs: addrsOf(addrs, a.Index),
	}
}

// readLink reads one link and its addresses. It does not read the routes, since
// a router may have very many.
func readLink(index int) (found link, err error) {
	err = uninterrupted(func() error {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		found = linkOf(l, addrs)
		return nil
	})
	return found, err
}

func addrsOf(all []netlink.Addr, index int) []address {
	var as []address
	for _, a := range all {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && a.LinkIndex == index {
			one := classify(ip.Unmap(), a.Flags, a.Scope)
			bits, _ := a.Mask.Size()
			one.prefix = netip.PrefixFrom(one.Addr, bits).Masked()
			if one.prefix.IsSingleIP() { // most addresses that move between hosts have such a prefix
				one.rank += 2
			}
			as = append(as, one)
		}
	}
	slices.SortStableFunc(as, func(a, b address) int {
		return cmp.Or(a.BitLen()-b.BitLen(), a.rank-b.rank)
	})
	return as
}

// classify determines whether an address is suitable as a permanent address of
// this node. IFA_F_TEMPORARY is the same bit as IFA_F_SECONDARY in IPv4
// (linux/if_addr.h), where a second address in a subnet is fine, but ranks
// below the first. The lifetime does not decide: a node's own address may be a
// DHCP lease, while an address that moves between hosts (keepalived, kube-vip)
// may be valid forever.
func classify(ip netip.Addr, flags, scope int) address {
	a := address{Addr: ip}
	switch {
	case ip.IsLoopback() || scope == unix.RT_SCOPE_HOST:
		a.fault = "host scope"
	case ip.Is6() && ip.IsLinkLocalUnicast():
		a.fault = "link-local"
	case flags&unix.IFA_F_DEPRECATED != 0:
		a.fault = "deprecated"
	case ip.Is6() && flags&unix.IFA_F_TEMPORARY != 0:
		a.fault = "temporary"
	case flags&unix.IFA_F_DADFAILED != 0:
		a.fault = "duplicate"
	case flags&unix.IFA_F_TENTATIVE != 0 && flags&unix.IFA_F_OPTIMISTIC == 0:
		a.fault = "tentative"
	}
	if ip.Is4() && ip.IsLinkLocalUnicast() {
		a.rank += 4
	}
	if ip.Is4() && flags&unix.IFA_F_SECONDARY != 0 {
		a.rank++
	}
	return a
}

func defaultsOf(routes []netlink.Route, ipv6 bool) []nexthop {
	var hops []nexthop
	for _, r := range routes {
		isDefault := r.Dst == nil
		if r.Dst != nil {
			ones, _ := r.Dst.Mask.Size()
			isDefault = ones == 0
		}
		if !isDefault || r.Type != unix.RTN_UNICAST {
			continue
		}
		source := addrOf(r.Src)
		if r.LinkIndex > 0 {
			hops = append(hops, nexthop{r.LinkIndex, ipv6, r.Priority, addrOf(r.Gw), source})
		}
		for _, m := range r.MultiPath {
			hops = append(hops, nexthop{m.LinkIndex, ipv6, r.Priority, addrOf(m.Gw), source})
		}
	}
	slices.SortStableFunc(hops, func(a, b nexthop) int { return a.metric - b.metric })
	return hops
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// senders returns the source addresses of l that the kernel uses for the
// default routes through l: the one that a route specifies or, if it specifies
// none, those in the gateway's subnet (inet_select_addr of net/ipv4/devinet.c).
func (h host) senders(l link) []netip.Addr {
	var all []netip.Addr
	for _, hop := range h.defaults {
		if hop.index != l.index {
			continue
		}
		for _, a := range l.addrs {
			named, near := a.Addr == hop.source, hop.gateway.IsValid() && a.prefix.Contains(hop.gateway)
			if a.fault == "" && (named || !hop.source.IsValid() && near) {
				all = append(all, a.Addr)
			}
		}
	}
	return all
}

func (h host) byIndex(index int) (link, bool) {
	i := slices.IndexFunc(h.links, func(l link) bool { return l.index == index })
	if i < 0 {
		return link{}, false
	}
	return h.links[i], true
}

// String lists the links and their addresses, without those of container
// networks, of which a node may have hundreds.
func (h host) String() string {
	var texts []string
	foreign := 0
	for _, l := range h.links {
		if containerLink(l.name) {
			foreign++
			continue
		}
		texts = append(texts, l.String())
	}
	if foreign > 0 {
		texts = append(texts, fmt.Sprintf("%d others of container networks or loopback", foreign))
	}
	if texts == nil {
		return "no interfaces"
	}
	return strings.Join(texts, ", ")
}

// String returns "eth0 (192.0.2.1, fe80::1 link-local)".
func (l link) String() string {
	var as []string
	if !l.up {
		as = append(as, "down")
	}
	for _, a := range l.addrs {
		as = append(as, strings.TrimSpace(a.Addr.String()+" "+a.fault))
	}
	if as == nil {
		as = []string{"no address"}
	}
	return fmt.Sprintf("%s (%s)", l.name, strings.Join(as, ", "))
}
