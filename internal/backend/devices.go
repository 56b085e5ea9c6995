package backend

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/routes"
	"github.com/twillnet/twill/internal/logging"
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

// openVXLAN opens a device for each family that the node has pods of. Where one of
// two cannot be had the other stays if it was there before.
func (p *Plane) openVXLAN() (err error) {
	var made []*vtep
	defer func() {
		if err == nil {
			return
		}
		for _, v := range made {
			err = errors.Join(err, v.Delete())
		}
		for _, v := range p.vteps {
			err = errors.Join(err, v.Close())
		}
		p.vteps = nil
	}()
	own := p.cfg.Own
	planned, err := planVTEPs(p.cfg.Underlay, own.Subnet.IsValid(), own.IPv6Subnet.IsValid())
	if err != nil {
		return err
	}
	if err := p.makeRoom(planned); err != nil {
		return err
	}
	for _, v := range planned {
		mac, there, err := p.macOf(v)
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
		if !there {
			made = append(made, p.vteps[len(p.vteps)-1])
		}
	}
	return nil
}

// makeRoom removes devices of this cluster with the same VNI that are not among
// the planned: the kernel has no second of the same VNI and port for the same
// family of the underlay.
func (p *Plane) makeRoom(planned []plannedVTEP) error {
	left, err := vxlan.LeftOf(p.cfg.Networks)
	if err != nil {
		return err
	}
	for _, ipv6Name := range []bool{false, true} {
		name := vxlan.Name(p.cfg.Settings.VXLAN.VNI, ipv6Name)
		if slices.ContainsFunc(planned, func(v plannedVTEP) bool { return v.ipv6Name == ipv6Name }) || !slices.Contains(left, name) {
			continue
		}
		if err := p.removeDevice(name); err != nil {
			return err
		}
	}
	return nil
}

// macOf returns the Ethernet address of the device v, which is the one that the
// others know, and whether a device with it is there. One with another goes.
func (p *Plane) macOf(v plannedVTEP) (mac net.HardwareAddr, there bool, err error) {
	vni := p.cfg.Settings.VXLAN.VNI
	existing, err := vxlan.Existing(vni, v.ipv6Name)
	if err != nil {
		return nil, false, err
	}
	told, err := v.dataIn(p.cfg.Own, vni)
	if err != nil || told.VNI != vni { // it is about to tell another
		mac = v.ownMAC(p.cfg.Underlay, vni)
	} else {
		mac = net.HardwareAddr(told.VtepMAC)
	}
	if existing != nil && !bytes.Equal(existing, mac) {
		return mac, false, vxlan.Remove(vxlan.Name(vni, v.ipv6Name))
	}
	return mac, existing != nil, nil
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
func (p *Plane) openTable(leases []lease.Lease) (err error) {
	if p.table != nil {
		return nil
	}
	peers := make(map[netip.Prefix]lease.Lease, len(leases))
	for _, l := range leases {
		for _, subnet := range l.Subnets() {
			peers[subnet] = l
		}
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	names := make(map[int]string)
	for _, i := range interfaces {
		names[i.Index] = i.Name
	}
	p.table, err = routes.Open(routes.Config{
		Ours:     func(r routes.Route) bool { return p.ours(r, peers, names) },
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
func (p *Plane) ours(r routes.Route, peers map[netip.Prefix]lease.Lease, names map[int]string) bool {
	if r.OnLink && r.Via == r.Dst.Addr() {
		return slices.ContainsFunc(p.vteps, func(v *vtep) bool { return v.Index() == r.Dev })
	}
	if l, ok := peers[r.Dst]; ok && r.Dev == p.cfg.Underlay.Index && r.Via == publicOf(l, r.Dst.Addr()) {
		return true
	}
	return p.memory.has(r, names[r.Dev]) // also one over an interface of a former choice
}

// Clear removes what runs with other backends have left for the cluster of the
// networks: VXLAN devices, and the plain routes that are written down in the file
// memory. It is for a node that is to carry no packets itself.
func Clear(networks []netip.Prefix, memory string, log *slog.Logger) error {
	p := &Plane{cfg: Config{Networks: networks, Logger: log}}
	removed, err := RemoveRoutes(memory, log)
	for _, r := range removed {
		log.Info("route of another configuration removed", logging.KeyRoute, r)
	}
	return errors.Join(err, p.retire())
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
		errs = append(errs, p.removeDevice(name))
	}
	return errors.Join(errs...)
}

func (p *Plane) removeDevice(name string) error {
	if err := vxlan.Remove(name); err != nil {
		return err
	}
	p.cfg.Logger.Info("device of another configuration removed", logging.KeyDevice, name)
	return nil
}
