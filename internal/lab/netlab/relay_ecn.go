package netlab

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ecnCE is the ECN field of a packet that has experienced congestion, RFC 3168
// §5. The field is 0 if the sender of a packet does not support ECN.
const ecnCE = 3

// Offsets in an IPv4 header.
const (
	ipv4TOS      = 1
	ipv4Checksum = 10
)

// markCongestion does what a congested router does to an ECN-capable IP packet
// instead of dropping it. It returns false and leaves the frame unchanged if the
// packet is not ECN-capable.
func markCongestion(frame []byte) bool {
	ip := frame[vnetHeaderLen+ethernetHeaderLen:]
	if binary.BigEndian.Uint16(frame[ethernetType:]) == unix.ETH_P_IPV6 {
		if len(ip) < 2 || ip[1]&(ecnCE<<4) == 0 {
			return false
		}
		ip[1] |= ecnCE << 4
		return true
	}
	if len(ip) < ipv4Checksum+2 || ip[ipv4TOS]&ecnCE == 0 {
		return false
	}
	// RFC 1624 eqn. 3: HC' = ~(~HC + ~m + m').
	sum := uint32(^binary.BigEndian.Uint16(ip[ipv4Checksum:])) + uint32(^binary.BigEndian.Uint16(ip))
	ip[ipv4TOS] |= ecnCE
	sum += uint32(binary.BigEndian.Uint16(ip))
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(ip[ipv4Checksum:], ^uint16(sum))
	return true
}
