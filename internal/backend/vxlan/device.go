package vxlan

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
)

// Names matches the names of all devices of flannel's vxlan backend, and the
// name of the device that a killed Probe leaves behind.
var Names = regexp.MustCompile(`^(flannel(-v6)?\.[1-9][0-9]*|` + probeName + `)$`)

// Name returns the name of the device for a VNI.
func Name(vni int, ipv6 bool) string {
	if ipv6 {
		return fmt.Sprintf("flannel-v6.%d", vni)
	}
	return fmt.Sprintf("flannel.%d", vni)
}

// Device describes a VXLAN device of this node.
type Device struct {
	Options
	// IPv6 selects flannel-v6.VNI, for IPv6 pods, instead of flannel.VNI.
	IPv6 bool
	// Subnets are the subnets of this node for which the device carries
	// traffic: usually one, of the family of the device. One device has both if
	// the underlay is IPv6 only, since the kernel does not allow a second VXLAN
	// device with the same VNI, port and underlay family.
	Subnets  []netip.Prefix
	Underlay underlay.Interface
	// Local is the address of the VTEP, one of the underlay interface's
	// addresses. All endpoints are of the same family.
	Local netip.Addr
	MAC   net.HardwareAddr // the address that the lease of this node announces
}

// Name returns the name of the device, such as "flannel.1".
func (d *Device) Name() string { return Name(d.VNI, d.IPv6) }

// TunnelMTU returns the MTU for the pods' interfaces.
func (d *Device) TunnelMTU() encap.TunnelMTU { return d.mtu(d.Underlay.MTU, d.Local) }

// Check finds problems that would prevent the device from working, before
// anything is changed.
func (d *Device) Check() error {
	name := d.Name()
	if !d.Local.IsValid() {
		return fmt.Errorf("create %s: interface %s has no address for it: add one, or choose another interface with --iface", name, d.Underlay.Name)
	}
	if d.Underlay.Index <= 0 {
		return fmt.Errorf("create %s: interface %s has no index", name, d.Underlay.Name)
	}
	if len(d.Subnets) == 0 {
		return fmt.Errorf("create %s: this node has no subnet of its address family", name)
	}
	if _, err := macOf(d.MAC); err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	return nil
}

// Link returns the device as the kernel should have it, with the first address
// of each subnet. release is the release of the kernel, as uname(2) reports it.
// Check must have succeeded.
func (d *Device) Link(release string) keep.Link {
	mac, _ := macOf(d.MAC)
	l := keep.Link{
		Name: d.Name(), MTU: int(d.TunnelMTU()), MAC: mac, NoTxChecksum: checksumsBroken(release),
		VXLAN: &keep.VXLAN{
			VNI: d.VNI, Port: d.UDPPort(), Underlay: d.Underlay.Index, UnderlayName: d.Underlay.Name,
			Local: d.Local.Unmap(), Learning: d.Learning, GBP: d.GBP,
		},
	}
	for _, s := range d.Subnets {
		l.Addrs = append(l.Addrs, s.Masked().Addr())
	}
	return l
}

// Peer is the VXLAN device of another node, as its lease announces it.
type Peer struct {
	Subnet   netip.Prefix     // the subnet of its pods, masked
	MAC      net.HardwareAddr // its VtepMAC
	Endpoint netip.Addr       // the address of its VTEP, of the family of Device.Local
}

// CheckPeer rejects a peer for which the kernel would install invalid entries.
func (d *Device) CheckPeer(p Peer) error {
	mac, err := macOf(p.MAC)
	if err != nil {
		return err
	}
	endpoint := p.Endpoint.Unmap().WithZone("")
	switch {
	case !p.Subnet.IsValid() || p.Subnet != p.Subnet.Masked():
		return errors.New("the subnet is missing or has host bits set")
	case !slices.ContainsFunc(d.Subnets, func(own netip.Prefix) bool { return own.Addr().BitLen() == p.Subnet.Addr().BitLen() }):
		return fmt.Errorf("%s has no subnet of this address family", d.Name())
	case slices.Contains(d.Subnets, p.Subnet):
		return errors.New("the subnet is this node's own")
	case slices.Equal(mac[:], d.MAC):
		return fmt.Errorf("its MAC address %s is also this node's, which drops its packets: delete %s on one of the two nodes and restart flanneld or twilld there", mac, d.Name())
	case !endpoint.IsValid() || endpoint.IsUnspecified() || endpoint.IsMulticast():
		return errors.New("the endpoint is not a unicast address")
	case endpoint.Is4() != d.Local.Is4():
		return fmt.Errorf("the endpoint is of a different address family than this node's address %s", d.Local)
	}
	return nil
}

// AddPeers adds to s the entries for the peers, all of which must have passed
// CheckPeer. If two peers have the same MAC but different endpoints, the later
// one in peers gets the FDB entry: usually a node has changed its address and
// its old lease has not expired yet. The other one cannot be reached; shared
// lists the earlier peer of each such pair.
func (d *Device) AddPeers(s *keep.State, peers []Peer) (shared []Peer) {
	name := d.Name()
	last := make(map[keep.MAC]int, len(peers))
	for i, p := range peers {
		mac := keep.MAC(p.MAC)
		if before, ok := last[mac]; ok && peers[before].Endpoint != p.Endpoint {
			shared = append(shared, peers[before])
		}
		last[mac] = i
		s.Neighs = append(s.Neighs, keep.Neigh{Dev: name, IP: p.Subnet.Addr(), MAC: mac})
		s.Routes = append(s.Routes, keep.Route{Dst: p.Subnet, Via: p.Subnet.Addr(), Dev: name, OnLink: true})
	}
	for i, p := range peers {
		if mac := keep.MAC(p.MAC); last[mac] == i {
			s.FDB = append(s.FDB, keep.FDB{Dev: name, MAC: mac, Dst: p.Endpoint.Unmap().WithZone("")})
		}
	}
	return shared
}

// Existing returns the MAC of the device that an earlier run of twill or stock
// flannel left in the network namespace of the calling thread, or nil if there is
// none.
func Existing(vni int, ipv6 bool) (net.HardwareAddr, error) {
	name := Name(vni, ipv6)
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up interface %s: %w", name, err)
	}
	if _, ok := link.(*netlink.Vxlan); !ok {
		return nil, nil
	}
	return link.Attrs().HardwareAddr, nil
}

// Before Linux 5.7, a packet rewritten by MASQUERADE --random-fully leaves a
// VXLAN device with a wrong checksum if the device offloads checksums, so
// services of the cluster cannot be reached from hosts
// (flannel-io/flannel#1279, where the workaround is "ethtool -K flannel.1
// tx-checksum-ip-generic off"; the version is from projectcalico/felix#2811).
const fixedMajor, fixedMinor = 5, 7

// checksumsBroken reports whether a kernel release has this bug. A release that
// cannot be parsed is assumed not to have it.
func checksumsBroken(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < fixedMajor || major == fixedMajor && minor < fixedMinor
}

// Data is what a lease announces about a node's VTEP, in BackendData for IPv4
// and in BackendV6Data for IPv6. Its JSON is identical to stock flannel's, byte
// for byte.
type Data struct {
	VNI     int
	VtepMAC HardwareAddr
}

// HardwareAddr is an Ethernet address whose JSON is a string such as
// "8e:3b:1c:52:a0:07".
type HardwareAddr net.HardwareAddr

// String writes the address in hexadecimal with colons.
func (a HardwareAddr) String() string { return net.HardwareAddr(a).String() }

// MarshalText implements encoding.TextMarshaler.
func (a HardwareAddr) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. It accepts all forms that
// net.ParseMAC accepts.
func (a *HardwareAddr) UnmarshalText(text []byte) error {
	const most = 59 // the text of a 20-byte address, the longest form
	if len(text) > most {
		return fmt.Errorf("not a MAC address: %d bytes", len(text)) // too long to repeat in the log
	}
	mac, err := net.ParseMAC(string(text))
	*a = HardwareAddr(mac)
	return err
}

// ParseData parses what a lease announces. It ignores unknown keys, as stock
// flannel does.
func ParseData(text json.RawMessage) (Data, error) {
	var d Data
	if err := json.Unmarshal(text, &d); err != nil {
		return Data{}, fmt.Errorf("decode VXLAN data of a lease: %.100w", err) // it quotes a number that is too large, which may be long
	}
	if d.VNI < 1 || d.VNI > maxVNI {
		return Data{}, fmt.Errorf("decode VXLAN data of a lease: VNI %d; want 1 to %d", d.VNI, maxVNI)
	}
	if _, err := macOf(net.HardwareAddr(d.VtepMAC)); err != nil {
		return Data{}, fmt.Errorf("decode VXLAN data of a lease: VtepMAC: %w", err)
	}
	return d, nil
}

// macOf converts a to an address that a host's device may have: 6 bytes,
// unicast, not zero.
func macOf(a net.HardwareAddr) (keep.MAC, error) {
	if len(a) == 0 {
		return keep.MAC{}, errors.New("no MAC address")
	}
	if len(a) != len(keep.MAC{}) || a[0]&1 != 0 || keep.MAC(a) == (keep.MAC{}) {
		return keep.MAC{}, fmt.Errorf("%s is not a unicast MAC address of 6 bytes", a)
	}
	return keep.MAC(a), nil
}

// MAC returns the default address for the device of the node whose public
// address is public. It is always the same for the same arguments, so it
// survives the deletion of the device, a reinstallation and a reboot without
// being stored. It is locally administered and unicast. The two devices of a
// node, which differ in VNI or family, have different addresses.
//
// Peers learn the address from the lease alone, so it matters only that it does
// not change, not how it is derived.
func MAC(public netip.Addr, vni int, ipv6 bool) net.HardwareAddr {
	return macOfText(fmt.Sprintf("%s %s", Name(vni, ipv6), public.Unmap().WithZone("")))
}

// SpareMAC returns alternatives to MAC, numbered by n, for use if another node
// has the default address.
func SpareMAC(public netip.Addr, vni int, ipv6 bool, n int) net.HardwareAddr {
	return macOfText(fmt.Sprintf("%s %s %d", Name(vni, ipv6), public.Unmap().WithZone(""), n))
}

func macOfText(s string) net.HardwareAddr {
	h := sha256.Sum256([]byte(s))
	mac := net.HardwareAddr(h[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}
