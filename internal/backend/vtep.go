package backend

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/tun"
)

// plannedVTEP is a VXLAN device as it is to be.
type plannedVTEP struct {
	ipv4, ipv6 bool       // of which families it carries packets of pods
	ipv6Name   bool       // it is flannel-v6.VNI
	local      netip.Addr // on the underlay
}

// carries says whether packets to a go through v.
func (v *plannedVTEP) carries(a netip.Addr) bool { return v.ipv6 && a.Is6() || v.ipv4 && a.Is4() }

// planVTEPs says which devices carry the packets of pods of the given families
// over the interface u: as stock flannel's, one for each family, over the
// addresses of the same family. Where the interface has one family only, its
// datagrams carry the packets of both, by one device, since the kernel has no
// second of the same VNI, port and family of the underlay.
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
	return nil, fmt.Errorf("interface %s has no address for the vxlan backend: give it one, or choose another with --iface", u.Name)
}

// ownMAC returns the address that a node takes by itself: one that follows from
// its public address, so that it is the same after a reboot, and nothing has to
// be kept.
func (v *plannedVTEP) ownMAC(u underlay.Interface, vni int) net.HardwareAddr {
	public := u.PublicIP
	if !public.IsValid() {
		public = u.PublicIPv6
	}
	return vxlan.MAC(public, vni, v.ipv6Name)
}

// MACs are the Ethernet addresses of the VXLAN devices of a VNI that a host has:
// of flannel.VNI and of flannel-v6.VNI. nil: there is no such device.
type MACs struct{ v4, v6 net.HardwareAddr }

// ReadMACs reads those that a node with the choice c is to have, in the network
// namespace of the calling thread.
func (s Settings) ReadMACs(c Choice) (m MACs, err error) {
	if !c.Has(VXLAN) {
		return m, nil
	}
	if m.v4, err = vxlan.Existing(s.VXLAN.VNI, false); err != nil {
		return m, err
	}
	m.v6, err = vxlan.Existing(s.VXLAN.VNI, true)
	return m, err
}

// of returns the address of the device that v is to be.
func (m MACs) of(v plannedVTEP) net.HardwareAddr {
	if v.ipv6Name {
		return m.v6
	}
	return m.v4
}

// Announce returns what a node with the choice c announces to the others in its
// lease. A device that is there keeps its address, unless another node has it too.
func (s Settings) Announce(c Choice, config *lease.Config, u underlay.Interface, self Self, partialChecksums tun.Switch) (lease.Attrs, error) {
	var v vteps
	if c.Has(VXLAN) {
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
	return s.attrs(c, u, v, udp.Announce(partialChecksums), self.ID), nil
}
