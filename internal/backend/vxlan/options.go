package vxlan

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/lease"
)

const (
	// maxVNI is the largest VXLAN network identifier, which has 24 bits (RFC
	// 7348 §5).
	maxVNI = 1<<24 - 1
	// defaultPort is the kernel's default, which predates the assignment of
	// port 4789 (vxlan_port in drivers/net/vxlan/vxlan_core.c).
	defaultPort = 8472
	// headersLen is the length of the headers between the inner packet and the
	// UDP header: the inner Ethernet header and the VXLAN header, in bytes.
	headersLen = 14 + 8
)

// Options are the options of the network configuration for the vxlan backend.
type Options struct {
	VNI  int // VXLAN network identifier
	Port int // UDP port of all nodes; 0: the kernel's default, 8472
	// MTU is that of the underlay, in bytes, if it should be lower than the
	// interface's; 0: the interface's.
	MTU int
	// GBP carries the mark of a packet across the tunnel (VXLAN Group Based
	// Policy). Either all nodes must set it or none.
	GBP bool
	// Learning lets the kernel learn FDB entries from received frames.
	Learning bool
	// DirectRouting sends packets to peers on the same link without a tunnel.
	// The caller implements it.
	DirectRouting bool
}

// OptionsOf returns the validated options of the backend that c names. Its
// error wraps a *lease.ConfigError that names the option.
func OptionsOf(c *lease.Config) (Options, error) {
	o := Options{VNI: 1} // flannel's default
	if err := c.Backend.Decode(&o); err != nil {
		return o, err
	}
	// least is the smallest underlay MTU that leaves enough for the families of
	// the network, assuming an IPv6 underlay if the network has IPv6.
	over := netip.IPv4Unspecified()
	if c.IPv6.Enabled() {
		over = netip.IPv6Unspecified()
	}
	least := int(encap.Least(c.IPv6.Enabled())) + Overhead(over)
	for _, n := range []struct {
		key   string
		value int
		ok    bool
		want  string
	}{
		{"VNI", o.VNI, o.VNI >= 1 && o.VNI <= maxVNI, fmt.Sprintf("a whole number from 1 to %d", maxVNI)},
		{"Port", o.Port, o.Port >= 0 && o.Port <= math.MaxUint16, fmt.Sprintf("a port from 1 to %d, or 0 for %d", math.MaxUint16, defaultPort)},
		{"MTU", o.MTU, o.MTU == 0 || o.MTU >= least && o.MTU <= math.MaxUint16,
			fmt.Sprintf("%d to %d bytes, or 0 for the MTU of each node's interface", least, math.MaxUint16)},
	} {
		if !n.ok {
			return o, fmt.Errorf("network config: %w", &lease.ConfigError{Key: "Backend." + n.key, Value: strconv.Itoa(n.value), Want: n.want})
		}
	}
	return o, nil
}

// Overhead returns the number of bytes that VXLAN adds to an inner packet on an
// underlay of the family of a: 50 for IPv4 and 70 for IPv6.
func Overhead(a netip.Addr) int { return encap.Overhead(a) + headersLen }

// UDPPort returns the UDP port that the nodes receive on.
func (o Options) UDPPort() int {
	if o.Port == 0 {
		return defaultPort
	}
	return o.Port
}

// mtu returns the MTU of the device, in bytes, over an interface with the MTU
// underlay. The kernel allows no more than fits into the interface's MTU.
func (o Options) mtu(underlay int, local netip.Addr) encap.TunnelMTU {
	if o.MTU != 0 {
		underlay = min(o.MTU, underlay)
	}
	return encap.TunnelMTU(min(underlay, math.MaxUint16) - Overhead(local))
}
