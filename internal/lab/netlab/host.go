package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addHost creates host number i, counted from 1, with its bridge and pods.
func (t *Topology) addHost(i int) error {
	letter := letterOf(i)
	h := &Host{
		Letter:  letter,
		Addr:    netip.AddrFrom4([4]byte{172, 31, 9, byte(10 + i)}),
		Addr6:   netip.MustParseAddr(fmt.Sprintf("fd00:172:31:9::1%d", i)),
		Subnet:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i), 0}), 24),
		Subnet6: netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%d::/64", i)),
	}
	var err error
	if h.NS, err = t.namespace(letter, "host "+letter); err != nil {
		return err
	}
	t.Hosts = append(t.Hosts, h)
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"} {
		if err := h.NS.Sysctl(key, "1"); err != nil {
			return fmt.Errorf("host %s: %w", letter, err)
		}
	}
	if err := h.addBridge(t.opts.MTU); err != nil {
		return err
	}
	for j := range t.opts.Pods {
		name := "pod-" + letter
		if j > 0 {
			name = fmt.Sprintf("pod-%s%d", letter, j+1)
		}
		ns, err := t.namespace(name, name)
		if err != nil {
			return err
		}
		p := &Pod{NS: ns, Addr: nth(h.Subnet, 2+j), Addr6: nth(h.Subnet6, 2+j)}
		h.Pods = append(h.Pods, p)
		if err := h.attach(p, j, t.opts.MTU); err != nil {
			return err
		}
	}
	return nil
}

// letterOf returns the letter of host number i, counted from 1.
func letterOf(i int) string {
	letter := string(rune('a' + (i-1)%26))
	if i > 26 {
		letter += strconv.Itoa((i-1)/26 + 1)
	}
	return letter
}

// nth returns address number n of a subnet; n is below 256.
func nth(subnet netip.Prefix, n int) netip.Addr {
	a := subnet.Masked().Addr().AsSlice()
	a[len(a)-1] = byte(n)
	addr, _ := netip.AddrFromSlice(a)
	return addr
}

// Gateway is the address that the host has on its bridge: .1 of Subnet.
func (h *Host) Gateway() netip.Addr { return nth(h.Subnet, 1) }

// Gateway6 is ::1 of Subnet6.
func (h *Host) Gateway6() netip.Addr { return nth(h.Subnet6, 1) }

// subnets are the pod subnets, IPv4 first.
func (h *Host) subnets() [2]netip.Prefix { return [2]netip.Prefix{h.Subnet, h.Subnet6} }

// underlay are the addresses on the wire, IPv4 first.
func (h *Host) underlay() [2]netip.Addr { return [2]netip.Addr{h.Addr, h.Addr6} }

// single is the subnet's own address as a /32 or /128.
func single(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(subnet.Addr(), subnet.Addr().BitLen())
}

// vethName is the host's end of the wire to its pod number i, counted from 0.
func vethName(i int) string { return fmt.Sprintf("veth%d", i) }

func (h *Host) addBridge(mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = bridgeLink, mtu
	if err := h.NS.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return fmt.Errorf("%s: add bridge %s: %w", h.NS, bridgeLink, err)
	}
	if err := h.NS.linkUp(bridgeLink); err != nil {
		return err
	}
	return h.NS.addAddrs(bridgeLink,
		netip.PrefixFrom(h.Gateway(), h.Subnet.Bits()), netip.PrefixFrom(h.Gateway6(), h.Subnet6.Bits()))
}

// attach connects pod number i to the bridge.
func (h *Host) attach(p *Pod, i, mtu int) error {
	name := vethName(i)
	if err := vethPair(h.NS, name, p.NS, "eth0", mtu); err != nil {
		return err
	}
	bridge, err := h.NS.nl.LinkByName(bridgeLink)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", h.NS, bridgeLink, err)
	}
	veth, err := h.NS.nl.LinkByName(name)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", h.NS, name, err)
	}
	if err := h.NS.nl.LinkSetMaster(veth, bridge); err != nil {
		return fmt.Errorf("%s: add %s to %s: %w", h.NS, name, bridgeLink, err)
	}
	if err := p.NS.addAddrs("eth0",
		netip.PrefixFrom(p.Addr, h.Subnet.Bits()), netip.PrefixFrom(p.Addr6, h.Subnet6.Bits())); err != nil {
		return err
	}
	for _, gw := range []netip.Addr{h.Gateway(), h.Gateway6()} {
		if err := p.NS.nl.RouteAdd(&netlink.Route{Dst: defaultRoute(gw), Gw: gw.AsSlice()}); err != nil {
			return fmt.Errorf("%s: add default route via %s: %w", p.NS, gw, err)
		}
	}
	return nil
}

// setUnderlay gives eth0, which connect has created, its addresses and features.
func (h *Host) setUnderlay(opts Options) error {
	if opts.Wire == MTU {
		if err := h.NS.plainNIC(UnderlayLink); err != nil {
			return err
		}
	}
	return h.NS.addAddrs(UnderlayLink, netip.PrefixFrom(h.Addr, 24), netip.PrefixFrom(h.Addr6, 64))
}

// vethPair creates a veth pair with an end in each of two namespaces, both up.
func vethPair(a *Namespace, aName string, b *Namespace, bName string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = aName, mtu
	err := a.nl.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.fd), PeerMTU: uint32(mtu),
	})
	if err != nil {
		return fmt.Errorf("%s: add veth %s with peer %s in %s: %w", a, aName, bName, b, err)
	}
	if err := a.linkUp(aName); err != nil {
		return err
	}
	return b.linkUp(bName)
}

// addAddrs adds addresses to a link; IPv6 ones are usable at once.
func (n *Namespace) addAddrs(link string, addrs ...netip.Prefix) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return fmt.Errorf("%s: find %s: %w", n, link, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: IPNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("%s: add %s to %s: %w", n, a, link, err)
		}
	}
	return nil
}

// IPNet converts p to the netlink package's type.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// defaultRoute is 0.0.0.0/0 or ::/0, depending on a's family.
func defaultRoute(a netip.Addr) *net.IPNet {
	return IPNet(netip.PrefixFrom(a, 0).Masked())
}
