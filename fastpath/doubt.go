package fastpath

import (
	"github.com/twillnet/twill/internal/logging"
)

// Any host that knows the addresses and ports of two nodes can send one of them an ICMP
// error that claims a narrow path to the other. The kernel believes it for ten minutes
// (net.ipv4.route.mtu_expires), and so would all pods of the node. A path MTU below a floor
// is therefore verified with probes, which are sent regardless of what the kernel has
// learnt. Until there is a result, large packets are sent in fragments of the size that
// the kernel has learnt, so that none is lost and pods do not learn the path MTU.

// verdict is the engine's assessment of the path MTU that the kernel has learnt for a
// peer.
type verdict uint8

const (
	// trusted: it is not below the floor, or has not been examined yet.
	trusted verdict = iota
	// doubted: it is below the floor, and is being verified with probes.
	doubted
	// refuted: the result of the probes is used instead.
	refuted
	// accepted: it is below the floor, but an administrator has set it, or the peer
	// does not answer probes.
	accepted
)

// doubtTicks is how long a path MTU is doubted without a result.
const doubtTicks = 25

// judge compares the path MTU that the kernel has learnt for a peer with the floor, and
// with the result of probes. It is called at most once per tick for each peer.
func (p *paths) judge(peer *Peer) {
	mtu, ok := p.ofKernel(peer)
	if !ok || p.floor == 0 {
		return
	}
	limits, w := &peer.path.limits, &peer.path.watched
	switch v := limits.load().kernel(); {
	case int(mtu) >= p.floor:
		if v != trusted {
			limits.setKernel(trusted)
		}
	case v == trusted:
		if set := p.setByAdministrator(peer); set > 0 && set < p.floor {
			limits.setKernel(accepted)
			return
		}
		w.doubts, w.concluded = 0, false
		limits.setKernel(doubted)
		p.probes.hurry(&w.probing)
	case v == doubted && w.concluded:
		limits.setKernel(refuted)
		if peer.Widest() == 0 {
			p.probes.log.Warn("ignoring ICMP error that claims a narrow path to a peer, larger packets arrive",
				logging.KeyAddress, peer.Endpoint, logging.KeyMTU, int(mtu))
		}
	case v == doubted:
		if w.doubts++; w.doubts > doubtTicks {
			limits.setKernel(accepted)
		}
	}
}

// setByAdministrator returns the MTU of the route to a peer, 0 if it has none.
func (p *paths) setByAdministrator(peer *Peer) int {
	if p.routeMTU == nil {
		return 0
	}
	return p.routeMTU(peer.Endpoint.Addr())
}

// hurry ends the round in progress and makes the next tick begin another one, after which
// conclusions are drawn without waiting for further rounds.
func (x *prober) hurry(s *probing) {
	if len(s.sizes) > 0 {
		x.end(s)
	}
	*s = probing{failed: probeFailures - 1}
}
