package vxlan

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/host/ports"
	"github.com/twillnet/twill/internal/logging"
)

// ErrDeviceGone says that the device was deleted, or has become another: made
// anew or changed by somebody else. It takes Open, Add and the routes to have
// it again.
var ErrDeviceGone = errors.New("the VXLAN device is gone")

// apply sets what is not as it should be: the MAC, the MTU, the up state,
// learning and the addresses. It returns what that was, in words.
//
// The link is looked up by its index: another of the same name is not ours. mu
// is held, but in Open.
func (d *Device) apply() (set []string, err error) {
	link, err := d.nl.LinkByIndex(d.index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("interface %s: %w", d.name, ErrDeviceGone)
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", d.name, err)
	}
	v, ok := link.(*netlink.Vxlan)
	if !ok {
		return nil, fmt.Errorf("interface %s is of type %s: %w", d.name, link.Type(), ErrDeviceGone)
	}
	if diffs := d.differs(v); len(diffs) > 0 {
		return nil, fmt.Errorf("interface %s: %w: %s", d.name, ErrDeviceGone, diffs[0])
	}
	for _, a := range []struct {
		right bool
		set   func() error
		what  string
	}{
		{bytes.Equal(v.HardwareAddr, d.mac), func() error { return d.nl.LinkSetHardwareAddr(v, d.mac) }, "MAC " + d.mac.String()},
		{v.MTU == int(d.mtu), func() error { return d.setMTU(v) }, fmt.Sprintf("MTU %d", d.mtu)},
		{v.Learning == d.cfg.Learning || d.learningFixed, d.setLearning, fmt.Sprintf("learning %t", d.cfg.Learning)},
		{v.Flags&net.FlagUp != 0 && !d.withoutIPv6(v), func() error { return d.up(v) }, "up"},
	} {
		if a.right {
			continue
		}
		if err := a.set(); err != nil {
			return set, d.gone(fmt.Errorf("set %s on %s: %w", a.what, d.name, err))
		}
		set = append(set, a.what)
	}
	addrs, err := d.applyAddrs(v)
	return append(set, addrs...), d.gone(err)
}

// gone makes an error of a device that is deleted ErrDeviceGone.
func (d *Device) gone(err error) error {
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("interface %s: %w", d.name, ErrDeviceGone)
	}
	return err
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1

// withoutIPv6 reports whether the kernel has turned IPv6 off on a device that is
// to have it, for its low MTU.
func (d *Device) withoutIPv6(v *netlink.Vxlan) bool {
	return v.MTU < encap.MinIPv6MTU && slices.ContainsFunc(d.cfg.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() })
}

// setMTU leaves a device without IPv6 down: if it were up, IPv6 would come back
// with a link-local address.
func (d *Device) setMTU(v *netlink.Vxlan) error {
	if d.withoutIPv6(v) {
		if err := d.nl.LinkSetDown(v); err != nil {
			return err
		}
	}
	return d.nl.LinkSetMTU(v, int(d.mtu))
}

func (d *Device) up(link netlink.Link) error {
	// Or else the kernel makes a link-local address. Where IPv6 is off there
	// is nothing to quieten.
	_ = d.nl.LinkSetIP6AddrGenMode(link, addrGenModeNone)
	err := d.nl.LinkSetUp(link)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("%w; UDP port %d is taken: %s, or set another Backend.Port in the network configuration",
			err, d.cfg.port(), ports.Holder(d.cfg.port()))
	}
	return err
}

// setLearning changes nothing but learning: asked for anything else besides,
// the kernel refuses to change a device that is there (vxlan_nl2flag in
// drivers/net/vxlan/vxlan_core.c). Before Linux 4.12 it changes nothing at all.
func (d *Device) setLearning() error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	learning := uint8(0)
	if d.cfg.Learning {
		learning = 1
	}
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(learning))
	req.AddData(msg)
	req.AddData(info)
	_, err := d.request(req, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		d.learningFixed = true
		d.cfg.Logger.Warn("this kernel cannot change learning of a device that is there",
			logging.KeyDevice, d.name, logging.KeyRemedy, "ip link delete "+d.name)
		return nil
	}
	return err
}

// request has the kernel answer on a socket in the namespace of the device.
func (d *Device) request(req *nl.NetlinkRequest, answers uint16) ([][]byte, error) {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: &d.requests}
	return req.Execute(unix.NETLINK_ROUTE, answers)
}

// applyAddrs gives the device the first address of each subnet, and takes away
// those that a former subnet had.
func (d *Device) applyAddrs(link netlink.Link) (set []string, err error) {
	list, err := d.nl.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", d.name, err)
	}
	has := make(map[netip.Prefix]netlink.Addr, len(list))
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && a.IPNet != nil {
			bits, _ := a.Mask.Size()
			has[netip.PrefixFrom(addr.Unmap(), bits)] = a
		}
	}
	var errs []error
	for _, s := range d.cfg.Subnets {
		own := hostPrefix(s.Masked().Addr())
		if _, ok := has[own]; ok {
			delete(has, own)
			continue
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: own.Addr().AsSlice(), Mask: net.CIDRMask(own.Bits(), own.Bits())}}
		if own.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD // nobody else is on this link
		}
		if err := d.nl.AddrAdd(link, a); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, fmt.Errorf("add address %s to %s: %w%s", own, d.name, err, addrRemedy(own, err)))
			continue
		}
		set = append(set, "address "+own.String())
	}
	for p, a := range has {
		if !p.IsSingleIP() || !d.inside(p.Addr()) {
			continue
		}
		if err := d.nl.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("delete address %s of %s: %w", p, d.name, err))
			continue
		}
		set = append(set, "not address "+p.String())
	}
	return set, errors.Join(errs...)
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// inside reports whether a belongs to the cluster.
func (d *Device) inside(a netip.Addr) bool {
	return slices.ContainsFunc(d.cfg.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

func addrRemedy(a netip.Prefix, err error) string {
	if a.Addr().Is6() && errors.Is(err, unix.EACCES) {
		return "; IPv6 is turned off here: set net.ipv6.conf.all.disable_ipv6=0, or leave IPv6 out of the network configuration"
	}
	return ""
}

// quietIPv6 turns router solicitations off, as stock flannel does: where nobody
// answers they only count as drops. It must run in the network namespace of the
// device: /proc shows a thread the files of its own.
func (d *Device) quietIPv6() {
	path := "/proc/sys/net/ipv6/conf/" + d.name + "/accept_ra"
	value, err := os.ReadFile(path)
	if err != nil || string(bytes.TrimSpace(value)) == "0" {
		return // there is no IPv6, or all is well
	}
	// A container may not be allowed to; that does no harm.
	_ = os.WriteFile(path, []byte("0"), 0o644)
}
