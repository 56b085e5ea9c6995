package underlay

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// chooser holds the state that all ways to choose share.
type chooser struct {
	host                 host
	own                  string
	publicIP, publicIPv6 netip.Addr
	needIPv4, needIPv6   bool
}

func (c *chooser) byNameOrAddr(s string) (Interface, error) {
	flag := "--iface=" + s
	if a, err := netip.ParseAddr(s); err == nil {
		return c.byAddr(flag, a)
	}
	for _, l := range c.host.links {
		if l.name == s || slices.Contains(l.altNames, s) {
			if l.name == c.own {
				return Interface{}, fmt.Errorf("%s: this is twilld's own device", flag)
			}
			return c.take(l, flag)
		}
	}
	return Interface{}, fmt.Errorf("%s: no such interface", flag)
}

// byAddr takes the first suitable link that has address a. flag is the flag
// that requests it.
func (c *chooser) byAddr(flag string, a netip.Addr) (Interface, error) {
	err := fmt.Errorf("%s: no interface has this address", flag)
	for _, l := range c.host.links {
		if !l.has(a) {
			continue
		}
		var i Interface
		if i, err = c.take(l, flag, a); err == nil {
			return i, nil
		}
	}
	return Interface{}, err
}

// excluded reports whether a link with this name must not be chosen unless it
// is named explicitly.
func (c *chooser) excluded(name string) bool { return name == c.own || containerLink(name) }

// byPattern takes the first suitable link, by index, whose name or address
// matches p as a whole. If no name or address does, a partial match is enough,
// as in flannel.
func (c *chooser) byPattern(p pattern) (Interface, error) {
	flag := "--iface-regex=" + p.text
	i, err := c.byMatch(flag, "", p.whole)
	if errors.Is(err, errNoMatch) {
		i, err = c.byMatch(flag, "part of ", p.part)
	}
	return i, err
}

// errNoMatch reports that no link has a matching name or address.
var errNoMatch = errors.New("matches no name or address")

// byMatch takes the first suitable link whose name or address matches r. of is
// added to the reason if the match is partial.
func (c *chooser) byMatch(flag, of string, r *regexp.Regexp) (Interface, error) {
	var matched []string
	var chosen *Interface
	var errs []error
	for _, l := range c.host.links {
		a, ok := l.match(r)
		if !ok {
			continue
		}
		matched = append(matched, l.name)
		if c.excluded(l.name) {
			errs = append(errs, fmt.Errorf("%s: %s belongs to a container network; to select it anyway, use --iface=%[2]s", flag, l.name))
			continue
		}
		i, err := c.take(l, flag, a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if chosen == nil {
			chosen = &i
		}
	}
	switch {
	case chosen == nil && errs == nil:
		return Interface{}, fmt.Errorf("%s %w", flag, errNoMatch)
	case chosen == nil:
		return Interface{}, joined(errs)
	case len(matched) > 1:
		chosen.Why += fmt.Sprintf(" matches %s%s; %s is the first suitable one", of, strings.Join(matched, ", "), chosen.Name)
	case of != "":
		chosen.Why += " matches " + of + chosen.Name
	}
	return *chosen, nil
}

// byDestination takes the link through which packets to a leave.
func (c *chooser) byDestination(a netip.Addr) (Interface, error) {
	flag := "--iface-can-reach=" + a.String()
	routes, err := netlink.RouteGet(a.AsSlice())
	if err != nil {
		return Interface{}, fmt.Errorf("%s: look up route: %w", flag, err)
	}
	for _, r := range routes {
		l, ok := c.host.byIndex(r.LinkIndex)
		switch {
		case r.Type == unix.RTN_LOCAL:
			return Interface{}, fmt.Errorf("%s is an address of this host; specify an address of another host", flag)
		case r.Type != unix.RTN_UNICAST || !ok:
			continue
		case c.excluded(l.name):
			return Interface{}, fmt.Errorf("%s: the route leads to %s, which belongs to a container network", flag, l.name)
		}
		src, _ := netip.AddrFromSlice(r.Src)
		return c.take(l, flag, src.Unmap())
	}
	return Interface{}, fmt.Errorf("%s: no route to this address", flag)
}

// byDefaultRoute takes the link of the best suitable default route. A default
// route of one family is enough, but the link needs addresses of all requested
// families.
func (c *chooser) byDefaultRoute() (Interface, error) {
	var errs []error
	for _, hop := range c.host.defaults {
		l, ok := c.host.byIndex(hop.index)
		if !ok || hop.ipv6 && !c.needIPv6 || !hop.ipv6 && !c.needIPv4 {
			continue
		}
		if c.excluded(l.name) {
			errs = append(errs, fmt.Errorf("default route: %s belongs to a container network", l.name))
			continue
		}
		i, err := c.take(l, "default route")
		if err == nil {
			return i, nil
		}
		errs = append(errs, err)
	}
	if errs == nil {
		return Interface{}, errors.New("there is no default route")
	}
	return Interface{}, joined(errs)
}

// take returns l as the interface if it is up and has the required addresses.
// why is the reason for trying it. asked are preferred addresses; they may be
// invalid.
func (c *chooser) take(l link, why string, asked ...netip.Addr) (Interface, error) {
	i := Interface{Name: l.name, Index: l.index, MTU: l.mtu, Why: why}
	if !l.up {
		return Interface{}, fmt.Errorf("%s: %s is down; set it up with 'ip link set %[2]s up'", why, l.name)
	}
	asked = append(append(asked, c.publicIP, c.publicIPv6), c.host.senders(l)...)
	if c.needIPv4 {
		if i.IPv4 = l.pick(netip.Addr.Is4, asked); !i.IPv4.IsValid() {
			return Interface{}, fmt.Errorf("%s: %s has no usable IPv4 address", why, l.name)
		}
	}
	if c.needIPv6 {
		if i.IPv6 = l.pick(netip.Addr.Is6, asked); !i.IPv6.IsValid() {
			return Interface{}, fmt.Errorf("%s: %s has no usable IPv6 address", why, l.name)
		}
	}
	i.PublicIP = cmp.Or(c.publicIP, i.IPv4)
	i.PublicIPv6 = cmp.Or(c.publicIPv6, i.IPv6)
	return i, nil
}

// pick returns the address of l to use in a family: the first of asked that l
// has, or else the first without a fault, in the kernel's order but with
// single-address prefixes last. An address in asked may have a fault, as long
// as it is neither a loopback nor an IPv6 link-local address.
func (l link) pick(inFamily func(netip.Addr) bool, asked []netip.Addr) netip.Addr {
	for _, a := range asked {
		if a.IsValid() && inFamily(a) && l.has(a) && !a.IsLoopback() && !(a.Is6() && a.IsLinkLocalUnicast()) {
			return a
		}
	}
	for _, a := range l.addrs {
		if inFamily(a.Addr) && a.fault == "" {
			return a.Addr
		}
	}
	return netip.Addr{}
}

func (l link) has(ip netip.Addr) bool {
	return slices.ContainsFunc(l.addrs, func(a address) bool { return a.Addr == ip })
}

// match returns the usable address of l that r matches. The address is invalid
// if r matches the name instead.
func (l link) match(r *regexp.Regexp) (netip.Addr, bool) {
	for _, a := range l.addrs {
		if a.fault == "" && r.MatchString(a.Addr.String()) {
			return a.Addr, true
		}
	}
	return netip.Addr{}, r.MatchString(l.name)
}
