package encap

import "net/netip"

// UnderlayMTU is the largest IP packet, in bytes, that an interface or path
// between hosts carries.
type UnderlayMTU int

// TunnelMTU is the largest inner packet, in bytes, that fits an underlay
// packet: the MTU of flannel0.
type TunnelMTU int

// Minimum MTUs that a host must support (RFC 791, RFC 8200 §5). Below them the
// kernel disables the address family on the device.
const (
	minIPv4MTU = 68
	MinIPv6MTU = 1280
)

// Overhead returns what the udp backend adds to an inner packet, in bytes: the
// UDP header and the IP header of the family of the underlay address a. It is
// 28 for IPv4 and 48 for IPv6.
func Overhead(a netip.Addr) int {
	if a.Unmap().Is4() {
		return ipv4HeaderLen + udpHeaderLen
	}
	return ipv6HeaderLen + udpHeaderLen
}

// Tunnel returns the MTU for inner packets over an underlay of MTU u reached
// from the address a, limited to MaxPacket minus the overhead of a datagram.
func (u UnderlayMTU) Tunnel(a netip.Addr) TunnelMTU {
	return TunnelMTU(min(int(u), MaxPacket) - Overhead(a))
}

// Least returns the smallest legal device MTU for IPv4, or for IPv6 if that is
// requested too.
func Least(ipv6 bool) TunnelMTU {
	if ipv6 {
		return MinIPv6MTU
	}
	return minIPv4MTU
}

// Usable reports whether t is a legal device MTU, as defined by [Least].
func (t TunnelMTU) Usable(ipv6 bool) bool { return t >= Least(ipv6) }
