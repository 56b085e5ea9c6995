package udp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/lease"
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

// configureLink gives the device its MTU, its addresses (the first of each of
// this node's subnets) and the routes to networks, and brings it up.
func configureLink(name string, mtu encap.TunnelMTU, own lease.Lease, networks []netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	if err := netlink.LinkSetMTU(link, int(mtu)); err != nil {
		return fmt.Errorf("set MTU %d on %s: %w", mtu, name, err)
	}
	// Without these the kernel makes a link-local address and sends router
	// solicitations into a device where nobody answers. Where IPv6 is off
	// there is nothing to quieten.
	_ = netlink.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/accept_ra", []byte("0"), 0o644)
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	for _, s := range subnetsOf(own) {
		host := netip.PrefixFrom(s.Masked().Addr(), s.Addr().BitLen())
		addr := &netlink.Addr{IPNet: ipNet(host)}
		if s.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w%s", host, name, err, addrRemedy(s, err))
		}
	}
	for _, n := range networks {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(n), Scope: netlink.SCOPE_UNIVERSE}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("add route %s dev %s: %w%s", n, name, err, routeRemedy(n, err))
		}
	}
	return nil
}

func addrRemedy(s netip.Prefix, err error) string {
	if s.Addr().Is6() && errors.Is(err, unix.EACCES) {
		return "; IPv6 is turned off here: set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6Subnet out of the lease"
	}
	return ""
}

func routeRemedy(n netip.Prefix, err error) string {
	if errors.Is(err, unix.EEXIST) {
		return fmt.Sprintf("; another route to it exists, perhaps of another flanneld: look with 'ip route show %s' and delete it", n)
	}
	return ""
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
