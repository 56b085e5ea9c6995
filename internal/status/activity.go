package status

import (
	"net/netip"
	"sync"
	"time"
)

// Activity remembers when each peer's counters last moved. The data plane counts
// and does not look at the clock; Note does, as often as it is called. Its zero
// value is ready, and may be used from several goroutines.
type Activity struct {
	mu    sync.Mutex
	peers map[peerKey]movement
	round uint // counts calls of Note
}

// peerKey names a peer across data planes: where one is replaced by another its
// counters start again at zero, and what is known of the peer stays.
type peerKey struct {
	subnet netip.Prefix // the first
	addr   netip.Addr
}

// movement is what is known of one peer.
type movement struct {
	packets uint64    // both ways, when looked at last
	at      time.Time // of the look that found them changed; zero: none has
	round   uint      // of the last look
}

// Note compares the peers' counters with those of the last call, and fills in
// Idle. Peers that are not among them are forgotten. now has a monotonic clock.
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
		m := a.peers[key] // zero: new, with no packet before
		packets := p.TXPackets + p.RXPackets
		if packets != m.packets {
			m.packets = packets
			if packets > 0 { // or else the counters only start again
				m.at = now
			}
		}
		m.round = a.round
		a.peers[key] = m
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
