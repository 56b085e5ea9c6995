package dataplane

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
)

// plannedVTEP describes a VXLAN device before it is created.
type plannedVTEP struct {
	ipv4, ipv6 bool       // the families of the pods' packets that it carries
	ipv6Name   bool       // the device name is flannel-v6.VNI
	local      netip.Addr // on the underlay
}

// carries reports whether packets to a go through v.
func (v *plannedVTEP) carries(a netip.Addr) bool { return v.ipv6 && a.Is6() || v.ipv4 && a.Is4() }

// planVTEPs decides which devices carry the packets of pods of the given
// families over the interface u. As in stock flannel there is one for each
// family, over underlay addresses of the same family. If the interface has
// addresses of one family only, a single device carries the packets of both,
// since the kernel does not allow a second one with the same VNI, port and
// underlay family.
func planVTEPs(u underlay.Interface, ipv4, ipv6 bool) ([]plannedVTEP, error) {
	switch {
	case u.IPv4.IsValid() && u.IPv6.IsValid():
		var all []plannedVTEP
		if ipv4 {
			all = append(all, plannedVTEP{ipv4: true, local: u.IPv4})
		}
		if ipv6 {
			all = append(all, plannedVTEP{ipv6: true, ipv6Name: true, local: u.IPv6})
		}
		return all, nil
	case u.IPv4.IsValid():
		return []plannedVTEP{{ipv4, ipv6, !ipv4, u.IPv4}}, nil
	case u.IPv6.IsValid():
		return []plannedVTEP{{ipv4, ipv6, ipv6, u.IPv6}}, nil
	}
	return nil, fmt.Errorf("interface %s has no address for the vxlan backend: add one, or choose another interface with --iface", u.Name)
}

// ownMAC returns the address that a node chooses by default. It is derived from
// the node's public address, so it is the same after a reboot without being
// stored.
func (v *plannedVTEP) ownMAC(u underlay.Interface, vni int) net.HardwareAddr {
	return vxlan.MAC(cmp.Or(u.PublicIP, u.PublicIPv6), vni, v.ipv6Name)
}

// MACs are the Ethernet addresses of a host's VXLAN devices for a VNI: those of
// flannel.VNI and flannel-v6.VNI. nil means that there is no such device.
type MACs struct{ v4, v6 net.HardwareAddr }

// ReadMACs reads the addresses of the devices that a node with the choice c
// uses, in the network namespace of the calling thread.
func ReadMACs(s backend.Settings, c backend.Choice) (m MACs, err error) {
	if !c.Opens(backend.VXLAN) {
		return m, nil
	}
	if m.v4, err = vxlan.Existing(s.VXLAN.VNI, false); err != nil {
		return m, err
	}
	m.v6, err = vxlan.Existing(s.VXLAN.VNI, true)
	return m, err
}

// of returns the address of the existing device for v.
func (m MACs) of(v plannedVTEP) net.HardwareAddr {
	if v.ipv6Name {
		return m.v6
	}
	return m.v4
}

// Announce returns what a node with the choice c announces in its lease. An
// existing device keeps its address unless another node has the same one. a is the
// announcement of the udp backend, if the node has it.
func Announce(s backend.Settings, c backend.Choice, config *lease.Config, u underlay.Interface, self Self, a udp.Announcement) (lease.Attrs, error) {
	var v vteps
	if c.Has(backend.VXLAN) {
		planned, err := planVTEPs(u, config.IPv4.Enabled(), config.IPv6.Enabled())
		if err != nil {
			return lease.Attrs{}, err
		}
		for _, p := range planned {
			mac := self.macFor(p, u, s.VXLAN.VNI)
			data := &vxlan.Data{VNI: s.VXLAN.VNI, VtepMAC: vxlan.HardwareAddr(mac)}
			if p.ipv4 {
				v.v4 = data
			}
			if p.ipv6 {
				v.v6 = data
			}
		}
	}
	return attrs(s, c, u, v, a, self.ID), nil
}
