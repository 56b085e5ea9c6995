package fastpath

import (
	"net/netip"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/twillnet/twill/metrics"
)

// resolverSize is the number of addresses that a resolver remembers: pods that
// this node talks to at a time. An entry takes about 150 bytes.
const resolverSize = 1024

// resolver answers which peer holds an inner address: the last address first,
// then an LRU, then the table. It belongs to one thread. It remembers only
// addresses that a peer holds, so that a scan of others costs no memory.
type resolver struct {
	peers *Peers
	lru   *simplelru.LRU[netip.Addr, *Peer]

	lastAddr netip.Addr
	lastPeer *Peer

	hits, misses uint64 // since the last flush
}

func newResolver() *resolver {
	lru, err := simplelru.NewLRU[netip.Addr, *Peer](resolverSize, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &resolver{lru: lru}
}

// use makes t the table of the following look-ups and forgets what an older
// table said. It is called once a batch.
func (r *resolver) use(t *Peers) {
	if r.peers == t {
		return
	}
	r.peers = t
	r.lru.Purge()
	r.lastAddr, r.lastPeer = netip.Addr{}, nil
}

// peer returns the peer that holds a, or nil.
func (r *resolver) peer(a netip.Addr) *Peer {
	if a == r.lastAddr {
		r.hits++
		return r.lastPeer
	}
	p, ok := r.lru.Get(a)
	if ok {
		r.hits++
	} else {
		r.misses++
		if p = r.peers.lookup(a); p == nil {
			return nil
		}
		r.lru.Add(a, p)
	}
	r.lastAddr, r.lastPeer = a, p
	return p
}

// flush adds hits and misses to the counters of the shard.
func (r *resolver) flush(c *metrics.Shard) {
	if r.hits > 0 {
		c.CacheHits.Add(r.hits)
	}
	if r.misses > 0 {
		c.CacheMisses.Add(r.misses)
	}
	r.hits, r.misses = 0, 0
}
