package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/encap/udp"
	"github.com/twillnet/twill/encap/vxlan"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/routes"
	"github.com/twillnet/twill/lease"
)

// checkPublic refuses plain routes where the peers would take another host's
// address for this node's.
func checkPublic(cfg Config) error {
	if !cfg.Choice.Knows(HostGW) {
		return nil
	}
	u := cfg.Underlay
	for _, a := range [][2]netip.Addr{{u.PublicIP, u.IPv4}, {u.PublicIPv6, u.IPv6}} {
		if a[0] != a[1] {
			return fmt.Errorf("backend host-gw: the public address is %s, that of interface %s is %s, and routes of the peers would lead to the former: leave out --public-ip, or choose another backend", a[0], u.Name, a[1])
		}
	}
	return nil
}

// openVXLAN opens a device for each family that the node has pods of.
func (p *Plane) openVXLAN() (err error) {
	defer func() {
		if err != nil {
			for _, v := range p.vteps {
				err = errors.Join(err, v.Delete(), v.Close())
			}
			p.vteps = nil
		}
	}()
	own := p.cfg.Own
	planned, err := planVTEPs(p.cfg.Underlay, own.Subnet.IsValid(), own.IPv6Subnet.IsValid())
	if err != nil {
		return err
	}
	for _, v := range planned {
		mac, err := p.macFor(v)
		if err != nil {
			return err
		}
		d, err := vxlan.Open(vxlan.Config{
			Options: p.cfg.Settings.VXLAN, IPv6: v.ipv6Name,
			Subnets:  slices.DeleteFunc(own.Subnets(), func(s netip.Prefix) bool { return !v.carries(s.Addr()) }),
			Networks: p.cfg.Networks, Underlay: p.cfg.Underlay, Local: v.local, MAC: mac, Logger: p.cfg.Logger,
		})
		if err != nil {
			return err
		}
		p.vteps = append(p.vteps, &vtep{d, v})
	}
	return nil
}

// macFor returns the address of the device v. Where the lease does not tell the
// others one, they take for granted that it is the node's own, and a device with
// another has to go.
func (p *Plane) macFor(v plannedVTEP) (net.HardwareAddr, error) {
	vni, u := p.cfg.Settings.VXLAN.VNI, p.cfg.Underlay
	mac, err := v.mac(u, vni)
	if err != nil || tellsVTEP(p.cfg.Own) {
		return mac, err
	}
	own := v.ownMAC(u.PublicIP, u.PublicIPv6, vni)
	if !bytes.Equal(mac, own) {
		err = vxlan.Remove(vxlan.Name(vni, v.ipv6Name))
	}
	return own, err
}

// openUDP opens the udp backend with routes for networks.
func (p *Plane) openUDP(networks []netip.Prefix) error {
	c := p.cfg.UDP
	c.Options, c.Underlay, c.Networks, c.Own, c.Logger = p.cfg.Settings.UDP, p.cfg.Underlay, networks, p.cfg.Own, p.cfg.Logger
	b, err := udp.Open(c)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.udp = b
	p.mu.Unlock()
	p.parts <- b.Run
	return nil
}

// openTable opens the table of routes, once it is known which peers there are.
func (p *Plane) openTable(hops []*hop) (err error) {
	if p.table != nil {
		return nil
	}
	peers := make(map[netip.Prefix]lease.Lease, len(hops))
	for _, h := range hops {
		peers[h.subnet] = h.peer
	}
	p.table, err = routes.Open(routes.Config{
		Ours:     func(r routes.Route) bool { return p.ours(r, peers) },
		Networks: p.cfg.Networks, Logger: p.cfg.Logger,
	})
	if err != nil {
		p.table = nil
		return err
	}
	p.parts <- p.table.Run
	return nil
}

// ours says of a route found on the host whether it is one of stock flannel's or
// of an earlier run: those through a VXLAN device of ours, plain ones that have
// been written down, and those that lead to a peer's subnet through that peer's
// address.
func (p *Plane) ours(r routes.Route, peers map[netip.Prefix]lease.Lease) bool {
	if r.OnLink && r.Via == r.Dst.Addr() {
		return slices.ContainsFunc(p.vteps, func(v *vtep) bool { return v.Index() == r.Dev })
	}
	if r.Dev != p.cfg.Underlay.Index {
		return false
	}
	l, ok := peers[r.Dst]
	return ok && r.Via == publicOf(l, r.Dst.Addr()) || p.memory.has(r, p.cfg.Underlay.Name)
}

// retire removes the VXLAN devices that earlier runs, of twill or of stock
// flannel, have left for this cluster and that are not used any more. Their routes
// go with them, which would lead to where nobody listens.
func (p *Plane) retire() error {
	left, err := vxlan.LeftOf(p.cfg.Networks)
	errs := []error{err}
	for _, name := range left {
		if slices.ContainsFunc(p.vteps, func(v *vtep) bool { return v.Name() == name }) {
			continue
		}
		err := vxlan.Remove(name)
		if errs = append(errs, err); err == nil {
			p.cfg.Logger.Info("device of another configuration removed", logging.KeyDevice, name)
		}
	}
	return errors.Join(errs...)
}
