package keep

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// leftDevices returns the VXLAN devices whose names match owned. If networks is
// not nil, it returns only those with an address in one of them.
func leftDevices(h *netlink.Handle, owned *regexp.Regexp, networks []network) (left []*netlink.Vxlan, err error) {
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		v, ok := l.(*netlink.Vxlan)
		if !ok || owned == nil || !owned.MatchString(v.Name) {
			continue
		}
		addrs, err := h.AddrList(v, netlink.FAMILY_ALL)
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return nil, fmt.Errorf("list addresses of %s: %w", v.Name, err)
		}
		if networks == nil || slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			ip, _ := netip.AddrFromSlice(a.IP)
			return slices.ContainsFunc(networks, func(n network) bool { return n.Contains(ip.Unmap()) })
		}) {
			left = append(left, v)
		}
	}
	return left, nil
}

// ErrInUse reports that a daemon has the TUN device open.
var ErrInUse = errors.New("stop the flanneld or twilld that runs on this host first")

// Clean removes what earlier runs of twill and of stock flannel left on this
// host: a TUN device of the name tun; the VXLAN devices of cfg.Owned, whatever
// their network; the plain routes that the record lists, if they are unchanged;
// blackhole routes to cfg.Subnets, and those of twill in the networks; and the
// record. It logs each removed object, and continues after failures, except that
// it removes nothing and returns ErrInUse if the TUN device is open. It works in
// the network namespace of the calling thread.
func Clean(tun string, cfg Config) (err error) {
	k, err := Open(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	left, err := leftTUN(k.nl, tun)
	if err != nil {
		return err
	}
	vxlans, err := leftDevices(k.nl, cfg.Owned, nil)
	errs := []error{err}
	for _, v := range vxlans {
		left = append(left, v)
	}
	for _, link := range left {
		errs = append(errs, k.removeDevice(link))
	}
	return errors.Join(append(errs, k.cleanRoutes())...)
}

// cleanRoutes deletes the routes of earlier runs, then the record.
func (k *Keeper) cleanRoutes() error {
	var own []Route // blackholes to cfg.Subnets: stock flannel's are not recognized by their form
	for _, s := range k.cfg.Subnets {
		own = append(own, Route{Dst: s, Blackhole: true})
	}
	k.Claim(own)
	k.mu.Lock()
	defer k.mu.Unlock()
	found, err := k.readRoutes()
	if err != nil {
		return err
	}
	k.want, k.have.routes = k.compile(State{}), k.earlier(found)
	earlier := maps.Clone(k.have.routes)
	var o outcome
	b := k.begin(false, &o)
	b.dropRoutes()
	for key, h := range earlier {
		if _, still := k.have.routes[key]; !still {
			k.cfg.Logger.Info("leftover route removed", logging.KeySubnet, h.Dst, logging.KeyRoute, k.named(h.Route))
		}
	}
	errs := []error{b.lost}
	for _, f := range o.failures {
		errs = append(errs, f.err)
	}
	if err := errors.Join(errs...); err != nil || k.cfg.Record == "" {
		return err
	}
	if err := os.Remove(k.cfg.Record); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of routes: %w", err)
	}
	return nil
}

// leftTUN returns the TUN device with this name. It returns none if the device does not
// exist or is of another kind, which twilld did not create. A device of an earlier run
// exists only if it is persistent, since others disappear with their last descriptor.
// Such a device has a carrier while it is open, even if it is down (drivers/net/tun.c).
func leftTUN(h *netlink.Handle, name string) ([]netlink.Link, error) {
	link, err := h.LinkByName(name)
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
		if open, err = hasCarrier(t.Index); err != nil {
			return nil, fmt.Errorf("read carrier of interface %s: %w", name, err)
		}
	}
	if open {
		return nil, fmt.Errorf("interface %s is open: %w", name, ErrInUse)
	}
	return []netlink.Link{link}, nil
}

// hasCarrier reports whether a device has a carrier, which package netlink does
// not expose.
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
	return false, errors.New("the kernel does not report it")
}
