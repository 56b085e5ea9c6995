package status

import "github.com/twillnet/twill/metrics"

// Shard is a summary of one shard's counters.
type Shard struct {
	Name            string    `json:"name,omitempty"` // "kernel" for the kernel path, otherwise empty
	TX              Direction `json:"tx"`             // pods to network
	RX              Direction `json:"rx"`             // network to pods
	CacheHits       uint64    `json:"cache_hits"`
	CacheMisses     uint64    `json:"cache_misses"`
	SocketOverflows uint64    `json:"socket_overflows"`
	Filtered        uint64    `json:"filtered"`
	GSOFallbacks    uint64    `json:"gso_fallbacks"`
	ICMPSent        uint64    `json:"icmp_sent"`
}

// Direction is a summary of one direction of a shard.
type Direction struct {
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
	Datagrams uint64 `json:"datagrams"`
	TunCalls  uint64 `json:"tun_calls"`
	SockCalls uint64 `json:"socket_calls"`
	Dropped   uint64 `json:"dropped"`
}

// Drops are the packets dropped by all shards, by reason; reasons that never
// occurred are absent.
type Drops struct {
	TX map[string]uint64 `json:"tx"`
	RX map[string]uint64 `json:"rx"`
}

// Summarize reads the counters of the shards. The numbers are read one by one
// while the shards keep counting; they need not be consistent with each other.
func Summarize(counters []*metrics.Shard) ([]Shard, Drops) {
	shards := make([]Shard, len(counters))
	drops := Drops{TX: map[string]uint64{}, RX: map[string]uint64{}}
	for i, c := range counters {
		shards[i] = Shard{
			Name:            c.Name,
			TX:              direction(&c.TX, drops.TX),
			RX:              direction(&c.RX, drops.RX),
			CacheHits:       c.CacheHits.Load(),
			CacheMisses:     c.CacheMisses.Load(),
			SocketOverflows: c.SocketOverflows.Load(),
			Filtered:        c.Filtered.Load(),
			GSOFallbacks:    c.GSOFallbacks.Load(),
			ICMPSent:        c.ICMPSent.Load(),
		}
	}
	return shards, drops
}

// direction summarizes c and adds its drops to byReason.
func direction(c *metrics.Direction, byReason map[string]uint64) Direction {
	d := Direction{
		Packets:   c.Packets.Load(),
		Bytes:     c.Bytes.Load(),
		Datagrams: c.Datagrams.Load(),
		TunCalls:  c.TunCalls.Load(),
		SockCalls: c.SockCalls.Load(),
	}
	for reason := range metrics.NumDrops {
		if n := c.Drops[reason].Load(); n > 0 {
			d.Dropped += n
			byReason[reason.String()] += n
		}
	}
	return d
}
