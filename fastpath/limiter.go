package fastpath

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// A shard limits the rate of the ICMP errors of each kind that it sends: in total, as
// net.ipv4.icmp_msgs_per_sec does for the kernel's own, and for each address that they
// are sent to, so that one pod cannot use up the budget of the others.
const (
	icmpRate        = 1000 // per second
	icmpBurst       = 200
	icmpSourceRate  = 200
	icmpSourceBurst = 50
	// icmpSources is the number of buckets for addresses, a power of two. Addresses
	// whose hashes are equal modulo this number share a bucket.
	icmpSources = 256
)

// budget limits the ICMP errors of one kind, for one thread. The zero value is full.
type budget struct {
	all     limiter
	sources [icmpSources]limiter
}

var budgetSeed = maphash.MakeSeed()

// allow reports whether an error may be sent to the address to. If so, it counts it.
func (b *budget) allow(to netip.Addr, now time.Time) bool {
	key := to.As16()
	source := &b.sources[maphash.Bytes(budgetSeed, key[:])%icmpSources]
	return source.allow(now, icmpSourceRate, icmpSourceBurst) && b.all.allow(now, icmpRate, icmpBurst)
}

// limiter is a token bucket for one thread. It is full at first.
type limiter struct {
	tokens float64
	last   time.Time
}

// allow takes a token if there is one. rate is in tokens per second.
func (l *limiter) allow(now time.Time, rate, burst float64) bool {
	l.tokens = min(burst, l.tokens+now.Sub(l.last).Seconds()*rate)
	l.last = now
	if l.tokens < 1 {
		return false
	}
	l.tokens--
	return true
}
