package doctor

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/lease"
)

// vtep is a VXLAN device that a lease announces.
type vtep struct {
	device string // its name on its node
	mac    string
}

// vtepsOf returns the devices that l announces. Unreadable data is reported by
// the backend.
func vtepsOf(l lease.Lease) []vtep {
	var all []vtep
	for i, text := range []json.RawMessage{l.BackendData, l.BackendV6Data} {
		if d, err := vxlan.ParseData(text); err == nil {
			all = append(all, vtep{vxlan.Name(d.VNI, i == 1), d.VtepMAC.String()})
		}
	}
	return all
}

// sharedVTEPs finds nodes that announce one Ethernet address in one VXLAN: the kernel
// sends the packets of both to one of them.
func (x *examination) sharedVTEPs() []Finding {
	var found []Finding
	first := map[vtep]lease.Lease{}
	for _, l := range x.Leases {
		for _, v := range vtepsOf(l) {
			other, taken := first[v]
			if !taken {
				first[v] = l
				continue
			}
			found = append(found, badf(fmt.Sprintf("ssh %s 'systemctl stop twilld; ip link delete %s; systemctl start twilld'", publicAddr(l), v.device),
				"leases %s of %s and %s of %s both have the VtepMAC %s for %s: packets for one node go to the other",
				other.Key(), publicAddr(other), l.Key(), publicAddr(l), v.mac, v.device))
		}
	}
	return found
}

// foreignVTEP finds a lease of this node that announces an Ethernet address other
// than the device's. Two nodes with one public address, such as clones of one
// machine, write to one lease in turn.
func foreignVTEP(own lease.Lease) (Finding, bool) {
	for _, v := range vtepsOf(own) {
		link, err := netlink.LinkByName(v.device)
		if err != nil || link.Type() != "vxlan" || link.Attrs().HardwareAddr.String() == v.mac {
			continue
		}
		return badf("systemctl restart twilld",
			"lease %s has the VtepMAC %s, but %s of this node has %s: either another node has the same public address %s and writes to the lease (give each node its own address with --public-ip), or the device was replaced",
			own.Key(), v.mac, v.device, link.Attrs().HardwareAddr, publicAddr(own)), true
	}
	return Finding{}, false
}

// publicAddr returns the address that identifies a node in messages.
func publicAddr(l lease.Lease) netip.Addr {
	return cmp.Or(l.PublicIP, l.PublicIPv6)
}
