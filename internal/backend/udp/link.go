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
	"github.com/twillnet/twill/internal/host/nlwatch"
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
	kind, command := link.Type(), "ip link delete "+name
	if t, ok := link.(*netlink.Tuntap); ok {
		if kind = "TAP"; t.Mode == netlink.TUNTAP_MODE_TUN {
			kind, command = "persistent TUN", "twilld --cleanup, or "+command
		}
		if t.NonPersist { // or else it would be gone
			return fmt.Errorf("interface %s is open in another process: stop the flanneld or twilld that runs on this host, or choose another name with --tun-name", name)
		}
	}
	return fmt.Errorf("interface %s exists and is not twilld's (%s): choose another name with --tun-name, or delete it (%s)",
		name, kind, command)
}

// link is the device as the rest of the host sees it: an interface with the
// first address of each of this node's subnets, to which the networks are
// routed. What else stands on it is somebody else's and stays.
//
// Open and close run before and after keep, so nothing here is locked.
type link struct {
	name   string
	index  int
	mtu    encap.TunnelMTU
	nl     *netlink.Handle // in the network namespace of the device
	addrs  []*netlink.Addr
	routes []*netlink.Route
	logger *slog.Logger

	events *nlwatch.Watcher // changes of interfaces, addresses and routes
	told   told             // what keep has logged
}

// openLink gives the open device its MTU, addresses and routes and brings it
// up.
func openLink(cfg *Config, mtu encap.TunnelMTU) (_ *link, err error) {
	l := &link{name: cfg.TunName, mtu: mtu, logger: cfg.Logger}
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
	// Before anything is set, so that no change of it is missed.
	if err := l.watch(); err != nil {
		return nil, err
	}
	// Where nobody answers, router solicitations only count as drops.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+l.name+"/accept_ra", []byte("0"), 0o644)
	_, err = l.apply()
	return l, err
}

// apply sets what is not as it should be: the MTU, the up state, the addresses
// and the routes. It returns what that was, in words. It does not stop at an
// address or route that cannot be had, and returns all errors.
func (l *link) apply() (set []string, err error) {
	dev, err := l.nl.LinkByIndex(l.index)
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", l.name, err)
	}
	attrs := dev.Attrs()
	up := attrs.Flags&net.FlagUp != 0
	if attrs.MTU != int(l.mtu) {
		if err := l.setMTU(dev, up); err != nil {
			return nil, err
		}
		set, up = append(set, fmt.Sprintf("MTU %d", l.mtu)), false
	}
	if !up {
		// Or else the kernel makes a link-local address. Where IPv6 is off
		// there is nothing to quieten.
		_ = l.nl.LinkSetIP6AddrGenMode(dev, addrGenModeNone)
		if err := l.nl.LinkSetUp(dev); err != nil {
			return set, fmt.Errorf("bring up %s: %w", l.name, err)
		}
		set = append(set, "up")
	}
	var errs []error
	for _, a := range l.addrs {
		switch err := l.nl.AddrAdd(dev, a); {
		case err == nil:
			set = append(set, "address "+a.IPNet.String())
		case !errors.Is(err, unix.EEXIST):
			errs = append(errs, fmt.Errorf("add address %s to %s: %w%s", a.IPNet, l.name, err, addrRemedy(a, err)))
		}
	}
	for _, r := range l.routes {
		switch err := l.nl.RouteAdd(r); {
		case err == nil:
			set = append(set, "route "+r.Dst.String())
		case !errors.Is(err, unix.EEXIST) || !l.routed(r):
			errs = append(errs, fmt.Errorf("add route %s dev %s: %w%s", r.Dst, l.name, err, routeRemedy(r, err)))
		}
	}
	return set, errors.Join(errs...)
}

// setMTU leaves the device down. Below 1,280 bytes the kernel has no IPv6 on
// it; set while it is up, an MTU that is larger again would bring a link-local
// address along.
func (l *link) setMTU(dev netlink.Link, up bool) error {
	if up {
		if err := l.nl.LinkSetDown(dev); err != nil {
			return fmt.Errorf("set down %s: %w", l.name, err)
		}
	}
	if err := l.nl.LinkSetMTU(dev, int(l.mtu)); err != nil {
		return fmt.Errorf("set MTU %d on %s: %w", l.mtu, l.name, err)
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
