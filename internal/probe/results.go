package probe

import (
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/metrics/prom"
)

// window is the number of probes over which loss is computed.
const window = 10

// silentAfter is the number of probes in a row without an answer after which a peer
// counts as silent.
const silentAfter = 3

// key identifies a peer. Its backend is part of it: a node whose families are reached by
// different backends is two peers.
type key struct {
	addr    netip.Addr
	subnet  netip.Prefix
	backend string
}

func keyOf(p *status.Peer) key {
	k := key{addr: p.PublicIP, backend: p.BackendName()}
	if len(p.Subnets) > 0 {
		k.subnet = p.Subnets[0]
	}
	return k
}

// result is what the probes of one peer have found.
type result struct {
	probes  status.Probe
	history uint16 // a bit for each of the last probes, the latest lowest; set: lost
	heard   time.Time
	round   uint // of the last call of keep with this peer
}

// add adds the outcome of a probe.
func (r *result) add(lost bool) {
	r.probes.Sent++
	r.history <<= 1
	if lost {
		r.probes.Lost++
		r.history |= 1
	}
	r.history &= 1<<window - 1
	r.probes.Loss = float64(bits.OnesCount16(r.history)) / float64(min(r.probes.Sent, window))
}

// silent returns 1 if the last probes were all lost, and 0 otherwise.
func (r *result) silent() int {
	const last = 1<<silentAfter - 1
	if r.history&last == last {
		return 1
	}
	return 0
}

// results are those of all peers. They are safe for concurrent use.
type results struct {
	metrics *prom.Probes

	mu     sync.Mutex
	of     map[key]*result
	round  uint           // counts calls of keep
	silent map[string]int // peers that are, by backend
}

// keep forgets what is known of others than peers.
func (r *results) keep(peers []status.Peer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.round++
	for backend := range r.silent {
		r.silent[backend] = 0
	}
	for i := range peers {
		k := keyOf(&peers[i])
		one := r.of[k]
		if one == nil {
			one = new(result)
			r.of[k] = one
		}
		one.round = r.round
		r.silent[k.backend] += one.silent()
	}
	for k, one := range r.of {
		if one.round != r.round {
			delete(r.of, k)
		}
	}
	r.metrics.Silent(r.silent)
}

func (r *results) answered(k key, rtt time.Duration, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.of[k]; one != nil { // otherwise it has gone
		one.probes.RTT, one.heard = rtt.Seconds(), now
		r.metrics.Answered(k.backend, rtt)
		r.add(one, k, false)
	}
}

func (r *results) lost(k key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if one := r.of[k]; one != nil {
		r.metrics.Lost(k.backend)
		r.add(one, k, true)
	}
}

func (r *results) add(one *result, k key, lost bool) {
	one.add(lost)
	if one.probes.Sent%window == 0 {
		r.metrics.Loss(k.backend, one.probes.Loss)
	}
}

func (r *results) fill(peers []status.Peer, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range peers {
		one := r.of[keyOf(&peers[i])]
		if one == nil || one.probes.Sent == 0 {
			continue
		}
		probes := one.probes
		peers[i].Probe = &probes
		if !one.heard.IsZero() {
			peers[i].HeardAgo(max(now.Sub(one.heard), 0))
		}
	}
}
