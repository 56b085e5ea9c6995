package keep

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// makeVXLAN creates the device, down, as stock flannel does.
func (k *Keeper) makeVXLAN(d *device) error {
	v := d.VXLAN
	err := k.nl.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{
			Name: d.Name,
			MTU:  d.MTU,
			// The address is part of the request, since systemd-udevd's
			// MACAddressPolicy could replace it before a separate request sets
			// it.
			HardwareAddr: d.MAC[:],
			TxQLen:       0, // as in flannel's requests
		},
		VxlanId: v.VNI, VtepDevIndex: v.Underlay, SrcAddr: v.Local.AsSlice(), Port: v.Port, Learning: v.Learning, GBP: v.GBP,
	})
	if err != nil {
		return fmt.Errorf("create VXLAN device %s on %s: %w%s", d.Name, v.UnderlayName, err, k.vxlanRemedy(v, err))
	}
	link, err := k.nl.LinkByName(d.Name)
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", d.Name, err)
	}
	d.index = link.Attrs().Index
	return nil
}

// takeOver uses the existing device, or replaces it if it differs.
func (k *Keeper) takeOver(d *device, link netlink.Link) (made bool, err error) {
	if _, ok := link.(*netlink.Vxlan); !ok {
		return false, fmt.Errorf("interface %s exists and is not a VXLAN device (%s): delete it (ip link delete %s), or set another Backend.VNI in the network configuration",
			d.Name, link.Type(), d.Name)
	}
	diffs := differences(link, d.VXLAN)
	if len(diffs) == 0 {
		return false, nil
	}
	k.cfg.Logger.Info("replacing VXLAN device with different settings", logging.KeyDevice, d.Name, logging.KeyWhy, strings.Join(diffs, ", "))
	if err := k.deleteLink(d.index, d.Name); err != nil {
		return false, err
	}
	return true, k.makeVXLAN(d)
}

// differences describes how link differs from the wanted VXLAN device in
// attributes that cannot be changed.
func differences(link netlink.Link, want *VXLAN) (diffs []string) {
	v, ok := link.(*netlink.Vxlan)
	if !ok {
		return []string{fmt.Sprintf("type %s, want vxlan", link.Type())}
	}
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	for _, a := range []struct {
		what      string
		has, want any
	}{
		{"VNI", v.VxlanId, want.VNI},
		{"interface index", v.VtepDevIndex, want.Underlay},
		{"local address", local.Unmap(), want.Local},
		{"UDP port", v.Port, want.Port},
		{"GBP", v.GBP, want.GBP},
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

// setLearning changes only learning: if a request contains other attributes,
// the kernel rejects changes to an existing device (vxlan_nl2flag in
// drivers/net/vxlan/vxlan_core.c). Before Linux 4.12 it rejects all changes.
func (k *Keeper) setLearning(d *device) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	learning := uint8(0)
	if d.VXLAN.Learning {
		learning = 1
	}
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(learning))
	req.AddData(msg)
	req.AddData(info)
	_, err := k.request(req, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		d.learningFixed = true
		k.cfg.Logger.Warn("kernel cannot change learning of an existing VXLAN device",
			logging.KeyDevice, d.Name, logging.KeyRemedy, "ip link delete "+d.Name)
		return nil
	}
	return err
}

// request executes req on a socket in the network namespace of Open.
func (k *Keeper) request(req *nl.NetlinkRequest, answers uint16) ([][]byte, error) {
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: &k.requests}
	return req.Execute(unix.NETLINK_ROUTE, answers)
}

// vxlanRemedy suggests a remedy if the kernel does not create the device.
func (k *Keeper) vxlanRemedy(v *VXLAN, err error) string {
	switch {
	case errors.Is(err, unix.EEXIST):
		return k.clash(v)
	case errors.Is(err, unix.ENODEV):
		return "; the interface is gone"
	case errors.Is(err, unix.EPERM) && v.Local.Is6():
		return "; CAP_NET_ADMIN is missing, or IPv6 is disabled on the interface: set net.ipv6.conf." + v.UnderlayName + ".disable_ipv6=0"
	}
	return VXLANRemedy(err)
}

// VXLANRemedy returns what the process or the kernel lacks if creating a VXLAN
// device fails with err, or "" if that is not known.
func VXLANRemedy(err error) string {
	switch {
	case errors.Is(err, unix.EPERM):
		return "; CAP_NET_ADMIN is missing: grant it to the process or container"
	case errors.Is(err, unix.EOPNOTSUPP):
		return "; this kernel has no VXLAN: load the module vxlan (modprobe vxlan), or use the udp backend"
	case errors.Is(err, unix.EAFNOSUPPORT):
		return "; this kernel does not support VXLAN over IPv6"
	}
	return ""
}

// clash names the existing device that has the same VNI and port.
func (k *Keeper) clash(v *VXLAN) string {
	all, err := k.nl.LinkList()
	if err != nil {
		return ""
	}
	for _, l := range all {
		if o, ok := l.(*netlink.Vxlan); ok && o.VxlanId == v.VNI && o.Port == v.Port {
			return fmt.Sprintf("; %s already has VNI %d and UDP port %d: delete it (ip link delete %s), or set another Backend.VNI or Backend.Port in the network configuration",
				o.Name, o.VxlanId, o.Port, o.Name)
		}
	}
	return ""
}

// makeRoom deletes devices of earlier runs in the networks that conflict with one of all:
// those that have its VNI but another name, since the kernel does not allow two VXLAN
// devices with the same VNI, port and underlay family, and those that hold its UDP port.
func (k *Keeper) makeRoom(all []Link) error {
	left, err := leftDevices(k.nl, k.cfg.Owned, k.networks)
	if err != nil {
		return err
	}
	for _, old := range left {
		wanted := slices.ContainsFunc(all, func(l Link) bool { return l.Name == old.Name })
		_, kept := k.devices[old.Name]
		inTheWay := slices.ContainsFunc(all, func(l Link) bool {
			return l.VXLAN != nil && l.VXLAN.VNI == old.VxlanId || l.Port != 0 && l.Port == old.Port && !kept
		})
		if !wanted && inTheWay {
			if err := k.removeDevice(old); err != nil {
				return err
			}
		}
	}
	return nil
}

// retire deletes, once, the devices of earlier runs in the networks that are
// not wanted, and with them their routes, which lead nowhere. It runs after the
// first Set, when other routes have replaced them.
func (k *Keeper) retire(o *outcome) {
	if k.retired {
		return
	}
	left, err := leftDevices(k.nl, k.cfg.Owned, k.networks)
	for _, old := range left {
		if _, wanted := k.devices[old.Name]; !wanted {
			err = errors.Join(err, k.removeDevice(old))
		}
	}
	if k.retired = err == nil; err != nil {
		o.fail(linkKey{what: "leftover devices"}, err)
	}
}

func (k *Keeper) removeDevice(old netlink.Link) error {
	if err := k.deleteLink(old.Attrs().Index, old.Attrs().Name); err != nil {
		return err
	}
	k.cfg.Logger.Info("leftover device removed", logging.KeyDevice, old.Attrs().Name)
	return nil
}
