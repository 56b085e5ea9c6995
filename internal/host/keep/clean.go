package keep

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlbatch"
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
func Clean(tun string, cfg Config) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	_ = h.SetStrictCheck(true)
	left, err := leftTUN(h, tun)
	if err != nil {
		return err
	}
	vxlans, err := leftDevices(h, cfg.Owned, nil)
	errs := []error{err}
	for _, v := range vxlans {
		left = append(left, v)
	}
	for _, link := range left {
		name := link.Attrs().Name
		switch err := h.LinkDel(link); {
		case err == nil:
			cfg.Logger.Info("leftover device removed", logging.KeyDevice, name)
		case !errors.Is(err, unix.ENODEV):
			errs = append(errs, fmt.Errorf("delete interface %s: %w", name, err))
		}
	}
	r, err := openRecord(cfg.Record)
	if err == nil {
		err = cleanRoutes(h, cfg, r)
	}
	if errs = append(errs, err); err == nil && cfg.Record != "" {
		if err := os.Remove(cfg.Record); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the list of routes: %w", err))
		}
	}
	return errors.Join(errs...)
}

// leftTUN returns the TUN device name unless there is none, or the device is of
// another kind, which twilld did not create. The device of an earlier run is there
// only if it is persistent, since others go away with their last descriptor. Such a
// device has a carrier while it is open, even if it is down (drivers/net/tun.c).
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

// cleanRoutes deletes the routes that Clean removes.
func cleanRoutes(h *netlink.Handle, cfg Config, r *record) (err error) {
	names := make(map[int]string)
	all, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	networks := append(currentNetworks(cfg), r.networks...)
	leftover := func(f foundRoute) bool {
		route := Route{Dst: f.Dst, Via: f.Via, Dev: names[f.Dev], OnLink: f.OnLink}
		switch {
		case !f.plain:
			return false
		case !f.Blackhole:
			return f.protocol == unix.RTPROT_BOOT && r.has(route)
		case slices.Contains(cfg.Subnets, f.Dst): // including those of stock flannel
			return true
		}
		return f.Metric == lastMetric && f.protocol == unix.RTPROT_BOOT &&
			(r.has(Route{Dst: f.Dst, Blackhole: true}) || slices.ContainsFunc(networks, func(n network) bool { return n.Overlaps(f.Dst) }))
	}
	conn, err := nlbatch.Dial()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	var requests []nlbatch.Request
	var routes []Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := dumpRoutes(h, family)
		if err != nil {
			return fmt.Errorf("read the routes: %w", err)
		}
		for _, f := range found {
			if leftover(f) {
				requests = append(requests, f.del())
				routes = append(routes, Route{Dst: f.Dst, Via: f.Via, Dev: names[f.Dev], OnLink: f.OnLink, Blackhole: f.Blackhole})
			}
		}
	}
	answers, err := conn.Do(requests)
	errs := []error{err}
	for i, a := range answers {
		switch {
		case a == nil && routes[i].Blackhole:
			cfg.Logger.Info("leftover blackhole route removed", logging.KeySubnet, routes[i].Dst)
		case a == nil:
			cfg.Logger.Info("leftover route removed", logging.KeyRoute, routes[i])
		case !errors.Is(a, unix.ESRCH):
			errs = append(errs, fmt.Errorf("delete route %s: %w", routes[i], a))
		}
	}
	return errors.Join(errs...)
}
