package udp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
)

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

// checkFree refuses a device name that an interface has already. The device is
// to be ours alone: the kernel would let us open further queues of one that
// another process serves, and a persistent one would outlive us with its
// address and routes. Of two processes that look at once, opening refuses one.
func checkFree(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	kind := link.Type()
	if t, ok := link.(*netlink.Tuntap); ok {
		kind = "persistent TUN"
		if t.Mode == netlink.TUNTAP_MODE_TAP {
			kind = "TAP"
		}
		if t.NonPersist { // or else it would be gone
			return fmt.Errorf("interface %s is open in another process: stop the flanneld or twilld that runs on this host, or choose another name with --tun-name", name)
		}
	}
	return fmt.Errorf("interface %s exists and is not twilld's (%s): choose another name with --tun-name, or delete it (ip link delete %s)",
		name, kind, name)
}

// link is the device as the rest of the host sees it: an interface with the
// first address of each of this node's subnets, to which the networks are
// routed.
type link struct {
	name   string
	index  int
	nl     *netlink.Handle // in the network namespace of the device
	addrs  []*netlink.Addr
	routes []*netlink.Route
	logger *slog.Logger

	updates chan netlink.LinkUpdate // of all interfaces
	done    chan struct{}           // closed to end updates
}

// openLink gives the open device its MTU, addresses and routes and brings it
// up.
func openLink(cfg *Config, mtu encap.TunnelMTU) (_ *link, err error) {
	l := &link{name: cfg.TunName, logger: cfg.Logger}
	if l.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	dev, err := l.nl.LinkByName(l.name)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", l.name, err)
	}
	l.index = dev.Attrs().Index
	for _, s := range subnetsOf(cfg.Own) {
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(s.Masked().Addr(), s.Addr().BitLen()))}
		if s.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		l.addrs = append(l.addrs, a)
	}
	for _, n := range cfg.Networks {
		l.routes = append(l.routes, &netlink.Route{LinkIndex: l.index, Dst: ipNet(n), Scope: netlink.SCOPE_UNIVERSE})
	}
	if err := l.nl.LinkSetMTU(dev, int(mtu)); err != nil {
		return nil, fmt.Errorf("set MTU %d on %s: %w", mtu, l.name, err)
	}
	// Without these the kernel makes a link-local address and sends router
	// solicitations into a device where nobody answers. Where IPv6 is off
	// there is nothing to quieten.
	_ = l.nl.LinkSetIP6AddrGenMode(dev, addrGenModeNone)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+l.name+"/accept_ra", []byte("0"), 0o644)
	if err := l.nl.LinkSetUp(dev); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", l.name, err)
	}
	if err := l.apply(); err != nil {
		return nil, err
	}
	return l, l.watch()
}

// apply adds the addresses and the routes that are not there.
func (l *link) apply() error {
	for _, a := range l.addrs {
		if err := l.nl.AddrReplace(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Index: l.index}}, a); err != nil {
			return fmt.Errorf("add address %s to %s: %w%s", a.IPNet, l.name, err, addrRemedy(a, err))
		}
	}
	for _, r := range l.routes {
		if err := l.nl.RouteAdd(r); err != nil && !(errors.Is(err, unix.EEXIST) && l.routed(r)) {
			return fmt.Errorf("add route %s dev %s: %w%s", r.Dst, l.name, err, routeRemedy(r, err))
		}
	}
	return nil
}

// routed reports whether the route r is there, as one of the device.
func (l *link) routed(r *netlink.Route) bool {
	routes, err := l.nl.RouteListFiltered(netlink.FAMILY_ALL, r, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	return err == nil && len(routes) > 0
}

func addrRemedy(a *netlink.Addr, err error) string {
	if a.IP.To4() == nil && errors.Is(err, unix.EACCES) {
		return "; IPv6 is turned off here: set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6Subnet out of the lease"
	}
	return ""
}

func routeRemedy(r *netlink.Route, err error) string {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Sprintf("; another route to it exists, perhaps of another flanneld: look with 'ip route show %s' and delete it", r.Dst)
	}
	return ""
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
