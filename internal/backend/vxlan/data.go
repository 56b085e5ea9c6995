package vxlan

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/twillnet/twill/internal/host/keep"
)

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
		return fmt.Errorf("%d bytes are not a MAC address", len(text)) // too long to repeat in the log
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
		return Data{}, fmt.Errorf("decode VXLAN data of a lease: %w", err)
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
		return keep.MAC{}, fmt.Errorf("%s is not the MAC address of a host", a)
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
