package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/metrics"
)

// join determines this node's part in the network: its backends, interface and
// lease. links receives a value when an interface has changed.
func (s *session) join(ctx context.Context, links <-chan struct{}) error {
	if err := s.takeConfig(ctx); err != nil {
		return err
	}
	s.reportBackends()
	for {
		w, err := s.identify(ctx, links)
		if err != nil {
			return err
		}
		if s.twin == "" {
			s.waitFor(metrics.WaitLease, "a lease")
		}
		twin, err := s.challenge(ctx, w.attrs)
		if err != nil {
			return err
		}
		if twin == "" {
			return s.acquire(ctx, w.attrs)
		}
		s.twin, s.twinSeen = twin, time.Now()
		s.waitFor(metrics.WaitLease, "a lease: "+twin)
		s.notifyManager(statusLine(s.waiting))
		if s.shown.changed("twin", twin) {
			s.log.Error("another host has this node's public address", logging.KeyWhy, twin)
		}
		select {
		case <-links: // its address may change
		case <-time.After(askAgain):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// identify determines what identifies this node to the others: interface, ID and
// device addresses.
func (s *session) identify(ctx context.Context, links <-chan struct{}) (want, error) {
	if s.twin == "" {
		s.waitFor(metrics.WaitInterface, waitsForLink)
	}
	if err := s.takeLink(ctx, links); err != nil {
		return want{}, err
	}
	if s.shown.changed("chosen", s.in.link.String()) {
		s.log.Info("interface chosen", logging.KeyInterface, s.in.link.Name, logging.KeyWhy, s.in.link.Why)
	}
	if s.store.byAddress && s.in.self.ID == "" {
		s.in.self.ID = s.identity(s.in.link)
	}
	if err := s.readMACs(); err != nil {
		return want{}, err
	}
	return plan(&s.in)
}

// acquire takes the lease that announces a.
func (s *session) acquire(ctx context.Context, a lease.Attrs) error {
	own, err := s.store.Acquire(ctx, a, s.previous())
	if err != nil {
		return err
	}
	s.in.own, s.applied.attrs, s.twin = *own, a, ""
	s.log.Info("lease acquired", logging.KeySubnet, own.Subnets())
	return nil
}

// takeLink chooses the interface. It waits for the default route, which a DHCP
// client or a router advertisement may set up long after boot. It does not wait for
// an interface named on the command line, since the name may be wrong.
func (s *session) takeLink(ctx context.Context, links <-chan struct{}) (err error) {
	for {
		if s.in.link, err = s.chooseLink(s.in.config); err == nil {
			return nil
		}
		if !errors.As(err, new(*underlay.NoneError)) || s.options.namesLink() {
			return err
		}
		if s.shown.changed("link", reason(err)) {
			s.log.Warn("no interface to the other nodes yet, waiting", logging.KeyError, err)
			s.waitFor(metrics.WaitInterface, waitsForLink+": "+err.Error())
			s.notifyManager(statusLine(s.waiting))
		}
		select {
		case <-links:
		case <-time.After(retryAfter): // a route may appear without a change of interfaces
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

const waitsForLink = "an interface to the other nodes"

// configWaiter is a store whose network configuration is written by others, so that a
// node waits for it.
type configWaiter interface {
	// WaitConfig returns the network configuration as soon as it is valid. Until
	// then it calls refused with the error, once for each version.
	WaitConfig(ctx context.Context, refused func(error)) (*lease.Config, error)
}

// takeConfig puts the store's network configuration into force. If it is invalid, a daemon
// that reads it from a local file ends; if others write it for all nodes, the daemon
// waits for a valid one.
func (s *session) takeConfig(ctx context.Context) (err error) {
	w, waits := s.store.Store.(configWaiter)
	if !waits {
		if s.in.latest, err = s.store.Config(ctx); err != nil {
			return err
		}
		return s.adopt(true)
	}
	for {
		if s.in.latest, err = w.WaitConfig(ctx, s.refuseConfig); err != nil {
			return err
		}
		if err = s.adopt(true); err == nil {
			if s.source.refused != nil {
				s.log.Info("network configuration is valid now")
			}
			s.source = sourceHealth{}
			return nil
		}
		s.refuseConfig(err)
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// refuseConfig reports the network configuration that keeps the node from starting.
func (s *session) refuseConfig(err error) {
	if s.source.refused != nil && s.source.refused.Error() == err.Error() {
		return
	}
	s.source.refused, s.source.since = err, time.Now()
	s.log.Error("network configuration rejected, waiting for a valid one", logging.KeyError, err)
	s.waitFor(metrics.WaitConfig, waitsForConfig+err.Error())
	s.notifyManager(statusLine(s.waiting))
}

// configFault reports whether err is about the network configuration itself.
func configFault(err error) bool {
	var (
		syntax *lease.SyntaxError
		config *lease.ConfigError
		ours   *settingsError
	)
	return errors.As(err, &syntax) || errors.As(err, &config) || errors.As(err, &ours) || errors.Is(err, etcd.ErrNoConfig) || errors.Is(err, lease.ErrConfig)
}

// chooseLink chooses the interface. In a network of both families it prefers
// one with addresses of both; otherwise one of either family will do, since
// datagrams of one family carry packets of both.
func (d *daemon) chooseLink(c *lease.Config) (underlay.Interface, error) {
	o := d.underlayOptions(c)
	link, err := d.choose(o)
	if err == nil || !o.NeedIPv4 || !o.NeedIPv6 {
		return link, err
	}
	for _, v4 := range []bool{true, false} {
		o.NeedIPv4, o.NeedIPv6 = v4, !v4
		if link, err := d.choose(o); err == nil {
			return link, nil
		}
	}
	return underlay.Interface{}, err
}

// underlayOptions returns the options for choosing the interface for the
// network of c.
func (d *daemon) underlayOptions(c *lease.Config) underlay.Options {
	o := d.options.underlay()
	o.PublicIP, o.PublicIPv6 = d.chosenAddrs()
	o.Own = d.options.tunName
	o.NeedIPv4, o.NeedIPv6 = c.IPv4.Enabled(), c.IPv6.Enabled()
	return o
}

// previous returns the state of the node before the restart. If it cannot be read,
// the node may at worst get another subnet, so that does not keep the daemon from
// starting.
func (d *daemon) previous() lease.Previous {
	env, err := lease.ReadSubnetEnv(d.options.subnetFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("cannot read subnet file", logging.KeyError, err)
	}
	prev := env.Previous()
	if prev.Addrs, err = d.addrs(); err != nil {
		d.log.Warn("cannot read addresses of this host", logging.KeyError, err)
	}
	if prev.Gateways, err = d.gateways(); err != nil {
		d.log.Warn("cannot read gateways of this host", logging.KeyError, err)
	}
	return prev
}

// hostAddrs returns the addresses in the network namespace of the calling thread at
// which other hosts may reach this one.
func hostAddrs() ([]netip.Addr, error) {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, a := range found {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
			all = append(all, p.Addr())
		}
	}
	return all, nil
}

// hostGateways returns the next hops of the default routes in the network namespace
// of the calling thread.
func hostGateways() ([]netip.Addr, error) {
	var all []netip.Addr
	add := func(ip net.IP) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			all = append(all, a.Unmap())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_DST)
		if err != nil {
			return nil, fmt.Errorf("list default routes: %w", err)
		}
		for _, r := range routes {
			add(r.Gw)
			for _, hop := range r.MultiPath {
				add(hop.Gw)
			}
		}
	}
	return all, nil
}
