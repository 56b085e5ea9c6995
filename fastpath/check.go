package fastpath

import (
	"fmt"
	"net/netip"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
)

// SourceCheck selects which received packets are admitted.
type SourceCheck uint8

const (
	// CheckStrict admits a packet only if the datagram comes from the public address
	// of the peer that holds the inner source, and the inner destination is in this
	// node's subnets.
	CheckStrict SourceCheck = iota
	// CheckInner ignores the address that the datagram came from, which allows
	// peers behind NAT or with several addresses.
	CheckInner
	// CheckOff admits everything that is well-formed, as stock flannel does. Any
	// host that can reach the port can then inject packets.
	CheckOff
)

var checkNames = [...]string{CheckStrict: "strict", CheckInner: "inner", CheckOff: "off"}

// String returns "strict", "inner" or "off".
func (c SourceCheck) String() string { return checkNames[c] }

// Set parses a flag's value (flag.Value).
func (c *SourceCheck) Set(v string) error {
	for i, n := range checkNames {
		if v == n {
			*c = SourceCheck(i)
			return nil
		}
	}
	return fmt.Errorf("%q is not one of strict, inner, off", v)
}

// admitted is the result of admit for a packet that may pass.
const admitted = metrics.NumDrops

// sourceChecker decides which received packets are admitted. It belongs to the RX
// thread of its shard.
type sourceChecker struct {
	mode     SourceCheck
	resolver *resolver

	lastDst  netip.Addr // the last destination found in this node's subnets
	lastFrom netip.Addr // the last host found to be a peer
}

func (s *sourceChecker) use(t *Peers) {
	if s.resolver.peers != t {
		s.lastDst, s.lastFrom = netip.Addr{}, netip.Addr{}
	}
	s.resolver.use(t)
}

// stranger reports whether no packet from the host at from can be admitted, regardless
// of its content.
func (s *sourceChecker) stranger(from netip.Addr) bool {
	if s.mode != CheckStrict || from == s.lastFrom && from.IsValid() {
		return false
	}
	if s.resolver.peers.byAddr[from] == nil {
		return true
	}
	s.lastFrom = from
	return false
}

// admit returns the peer that holds the inner source of a packet, if there is one, and
// either admitted or the reason why the packet must be dropped. h describes the packet,
// which came from the host at from; that host must not be a stranger.
func (s *sourceChecker) admit(from netip.Addr, h *encap.Header) (*Peer, metrics.Drop) {
	peer := s.resolver.peer(h.Src)
	if s.mode == CheckOff {
		return peer, admitted
	}
	if peer == nil || s.mode == CheckStrict && peer.Endpoint.Addr() != from {
		return nil, metrics.DropSpoofedSource
	}
	if h.Dst != s.lastDst {
		if !s.resolver.peers.owns(h.Dst) {
			return nil, metrics.DropForeignDestination
		}
		s.lastDst = h.Dst
	}
	return peer, admitted
}
