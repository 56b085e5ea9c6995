package status

import (
	"net/netip"
	"sync"
	"time"
)

// Activity remembers when each peer's counters last moved. The data plane counts
// without reading the clock, so the resolution is the interval between calls of
// Note. The zero value is ready to use. It is safe for concurrent use.
type Activity struct {
	mu    sync.Mutex
	peers map[peerKey]movement
	round uint // counts calls of Note
}

// peerKey identifies a peer across data planes: when a data plane is replaced, the
// counters start again at zero, but the peer's activity is kept.
type peerKey struct {
	subnet netip.Prefix // the first
	addr   netip.Addr
}

// movement is the activity of one peer.
type movement struct {
	packets  uint64    // both ways, as of the last call of Note
	at       time.Time // of the last call that found packets changed; zero if none did
	received uint64    // the number of packets from the peer
	heard    time.Time // of the last call that found received changed; zero if none did
	round    uint      // of the last call
}

// Note compares the peers' counters with those of the last call, and fills in Idle and
// Heard. Peers that are not in peers are forgotten. now must have a monotonic clock
// reading.
func (a *Activity) Note(peers []Peer, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.peers == nil {
		a.peers = make(map[peerKey]movement, len(peers))
	}
	a.round++
	for i := range peers {
		p := &peers[i]
		key := peerKey{addr: p.PublicIP}
		if len(p.Subnets) > 0 {
			key.subnet = p.Subnets[0]
		}
		m := a.peers[key] // zero for a new peer without packets
		packets := p.TXPackets + p.RXPackets
		if packets != m.packets {
			m.packets = packets
			if packets > 0 { // otherwise the counters have only been reset
				m.at = now
			}
		}
		if p.RXPackets != m.received {
			m.received = p.RXPackets
			if p.RXPackets > 0 {
				m.heard = now
			}
		}
		m.round = a.round
		a.peers[key] = m
		if !m.heard.IsZero() {
			p.HeardAgo(max(now.Sub(m.heard), 0))
		}
		if !m.at.IsZero() {
			idle := max(now.Sub(m.at), 0).Seconds()
			p.Idle = &idle
		}
	}
	for key, m := range a.peers {
		if m.round != a.round {
			delete(a.peers, key)
		}
	}
}
