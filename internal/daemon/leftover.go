package daemon

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// leftDevice returns the TUN device name if no process has it open. It returns
// nil if there is none or if the device is of another kind, which twilld did not
// create. An open device belongs to a running daemon and is an error. Without an
// open descriptor only a persistent device exists.
func leftDevice(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	t, ok := link.(*netlink.Tuntap)
	if !ok || t.Mode != netlink.TUNTAP_MODE_TUN {
		return nil, nil
	}
	open := t.NonPersist
	if !open {
		if open, err = hasCarrier(link.Attrs().Index); err != nil {
			return nil, fmt.Errorf("look at interface %s: %w", name, err)
		}
	}
	if open {
		return nil, fmt.Errorf("interface %s is open: stop the flanneld or twilld that runs on this host first", name)
	}
	return link, nil
}

// hasCarrier reports whether a persistent TUN device is open: its carrier is set
// with the first descriptor and cleared with the last (drivers/net/tun.c), even
// while the interface is down. The netlink package does not expose it.
func hasCarrier(index int) (bool, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	replies, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return false, err
	}
	for _, r := range replies {
		if len(r) < unix.SizeofIfInfomsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(r[unix.SizeofIfInfomsg:])
		if err != nil {
			return false, err
		}
		for _, a := range attrs {
			if a.Attr.Type == unix.IFLA_CARRIER && len(a.Value) > 0 {
				return a.Value[0] != 0, nil
			}
		}
	}
	return false, errors.New("the kernel does not report its carrier")
}

// removeDevice deletes a device that leftDevice returned, and with it its
// addresses and routes.
func (d *daemon) removeDevice(device netlink.Link) error {
	name := device.Attrs().Name
	if err := netlink.LinkDel(device); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	d.log.Info("device and its routes removed", logging.KeyDevice, name)
	return nil
}
