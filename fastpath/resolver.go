package fastpath

import (
	"net/netip"
	"strconv"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/twillnet/twill/metrics"
)

const (
	// lruSize is the number of addresses in the LRU of a resolver: the pods that
	// this node talks to at the same time. An entry takes about 150 bytes.
	lruSize = 1024
	// lruSubnets6 is the number of IPv6 subnets from which on the LRU is consulted
	// before the table. A hit takes 25 ns. The table takes 15 ns for 1,000
	// subnets, and from some 50,000 on between 18 ns (/64) and 36 ns (/112).
	// For IPv4 it takes 6 to 10 ns for up to a million subnets, so the LRU
	// would only add cost (BenchmarkResolver).
	lruSubnets6 = 1 << 15
	// lruAlways is for 32-bit machines, where a look-up in the table allocates
	// and takes 27 ns for IPv4 and 45 ns for IPv6: the compiler does not inline
	// netip.Addr.AsSlice there, which bart uses.
	lruAlways = strconv.IntSize == 32
)

// resolver finds the peer that holds an inner address: it checks the last address,
// then an LRU if that is faster than the table, then the table. It belongs to
// one thread. It remembers only addresses that a peer holds, so a scan of
// other addresses costs no memory.
type resolver struct {
	peers *Peers
	lru   *simplelru.LRU[netip.Addr, *Peer]
	// lru4 and lru6 report whether the LRU is used for addresses of a family.
	lru4, lru6 bool

	lastAddr netip.Addr
	lastPeer *Peer

	hits, misses uint64 // since the last flush
}

func newResolver() *resolver {
	lru, err := simplelru.NewLRU[netip.Addr, *Peer](lruSize, nil)
	if err != nil {
		panic(err) // only for a size below 1
	}
	return &resolver{lru: lru}
}

// use makes t the table for the following look-ups and discards cached results of an
// older table. It is called once per batch.
func (r *resolver) use(t *Peers) {
	if r.peers == t {
		return
	}
	r.peers = t
	r.lru4, r.lru6 = lruAlways, lruAlways || t.subnets6 >= lruSubnets6
	r.lru.Purge()
	r.lastAddr, r.lastPeer = netip.Addr{}, nil
}

// peer returns the peer that holds a, or nil.
func (r *resolver) peer(a netip.Addr) *Peer {
	if a == r.lastAddr {
		r.hits++
		return r.lastPeer
	}
	p := r.find(a)
	if p != nil {
		r.lastAddr, r.lastPeer = a, p
	}
	return p
}

// find is peer without the check of the last address.
func (r *resolver) find(a netip.Addr) *Peer {
	cached := r.lru6
	if a.Is4() {
		cached = r.lru4
	}
	if cached {
		if p, ok := r.lru.Get(a); ok {
			r.hits++
			return p
		}
	}
	r.misses++
	p := r.peers.lookup(a)
	if cached && p != nil {
		r.lru.Add(a, p)
	}
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
