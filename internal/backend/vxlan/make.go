package vxlan

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// ensure finds the device or makes it, and says whether it made it.
func (d *Device) ensure() (made bool, err error) {
	d.mac = d.cfg.MAC
	link, err := d.nl.LinkByName(d.name)
	switch {
	case errors.As(err, &netlink.LinkNotFoundError{}):
		return true, d.make()
	case err != nil:
		return false, fmt.Errorf("look up interface %s: %w", d.name, err)
	}
	existing, ok := link.(*netlink.Vxlan)
	if !ok {
		return false, fmt.Errorf("interface %s exists and is not a VXLAN device (%s): delete it (ip link delete %s), or set another Backend.VNI in the network configuration",
			d.name, link.Type(), d.name)
	}
	d.index, d.mac = existing.Index, existing.HardwareAddr
	diffs := d.differs(existing)
	if len(diffs) == 0 {
		return false, nil
	}
	d.cfg.Logger.Info("device is of another configuration, it is made anew",
		logging.KeyDevice, d.name, logging.KeyWhy, strings.Join(diffs, ", "))
	if err := d.Delete(); err != nil {
		return false, err
	}
	return true, d.make()
}

// wanted is the device as stock flannel asks for it.
func (d *Device) wanted() *netlink.Vxlan {
	return &netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: d.name,
			MTU:  int(d.mtu),
			// In the request itself: of an address that is set afterwards,
			// systemd-udevd's MACAddressPolicy might make another in between.
			HardwareAddr: d.mac,
			TxQLen:       0, // which is what flannel's calls say
		},
		VxlanId:      d.cfg.VNI,
		VtepDevIndex: d.cfg.Underlay.Index,
		SrcAddr:      d.cfg.Local.AsSlice(),
		Port:         d.cfg.Port,
		Learning:     d.cfg.Learning,
		GBP:          d.cfg.GBP,
	}
}

// make makes the device, down.
func (d *Device) make() error {
	if err := d.nl.LinkAdd(d.wanted()); err != nil {
		return fmt.Errorf("make VXLAN device %s on %s: %w%s", d.name, d.cfg.Underlay.Name, err, d.makeRemedy(err))
	}
	link, err := d.nl.LinkByName(d.name)
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", d.name, err)
	}
	d.index, d.mac = link.Attrs().Index, link.Attrs().HardwareAddr
	return nil
}

// makeRemedy says what to do where the kernel does not make the device.
func (d *Device) makeRemedy(err error) string {
	switch {
	case errors.Is(err, unix.EEXIST):
		return d.clash()
	case errors.Is(err, unix.ENODEV):
		return "; the interface is gone"
	case errors.Is(err, unix.EPERM) && d.cfg.Local.Is6():
		return "; CAP_NET_ADMIN is missing, or IPv6 is turned off on the interface: set net.ipv6.conf." + d.cfg.Underlay.Name + ".disable_ipv6=0"
	}
	return remedy(err)
}

// remedy says what a process or kernel lacks that cannot make VXLAN devices.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "; CAP_NET_ADMIN is missing: give it to the process or container"
	case errors.Is(err, unix.EOPNOTSUPP):
		return "; this kernel has no VXLAN: load the module vxlan (modprobe vxlan), or use the udp backend"
	case errors.Is(err, unix.EAFNOSUPPORT):
		return "; this kernel has no VXLAN over IPv6"
	}
	return ""
}

// clash names the device that has the VNI already.
func (d *Device) clash() string {
	links, err := d.nl.LinkList()
	if err != nil {
		return ""
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.VxlanId == d.cfg.VNI && v.Port == d.cfg.port() {
			return fmt.Sprintf("; %s has VNI %d and UDP port %d already: delete it (ip link delete %s), or set another Backend.VNI or Backend.Port in the network configuration",
				v.Name, v.VxlanId, v.Port, v.Name)
		}
	}
	return ""
}

// differs returns in which respects, that cannot be changed of it, a device is
// not the one that is wanted.
func (d *Device) differs(v *netlink.Vxlan) (diffs []string) {
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	for _, a := range []struct {
		what      string
		has, want any
	}{
		{"VNI", v.VxlanId, d.cfg.VNI},
		{"interface index", v.VtepDevIndex, d.cfg.Underlay.Index},
		{"local address", local.Unmap(), d.cfg.Local},
		{"UDP port", v.Port, d.cfg.port()},
		{"GBP", v.GBP, d.cfg.GBP},
		{"multicast group", len(v.Group) > 0, false},
		{"external", v.FlowBased, false},
		{"proxy", v.Proxy, false},
		{"rsc", v.RSC, false},
		{"l2miss", v.L2miss, false},
		{"l3miss", v.L3miss, false},
	} {
		if a.has != a.want {
			diffs = append(diffs, fmt.Sprintf("%s %v, want %v", a.what, a.has, a.want))
		}
	}
	return diffs
}
