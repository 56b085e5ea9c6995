package fastpath

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/metrics"
)

func TestSockaddrRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		endpoint string
		length   uint32
		wire     []byte // behind the family, as far as it is defined
	}{
		{"192.0.2.7:8285", 16, []byte{0x20, 0x5d, 192, 0, 2, 7}},
		{"[2001:db8::7]:8285", 28, append([]byte{0x20, 0x5d, 0, 0, 0, 0, 0x20, 1, 0xd, 0xb8}, append(make([]byte, 11), 7)...)},
		{"[::ffff:192.0.2.7]:8285", 16, []byte{0x20, 0x5d, 192, 0, 2, 7}},
	} {
		p := NewPeer(nil, netip.MustParseAddrPort(tt.endpoint))
		if p.nameLen != tt.length {
			t.Errorf("%s: %d bytes, want %d", tt.endpoint, p.nameLen, tt.length)
		}
		wire := unsafe.Slice((*byte)(unsafe.Pointer(&p.name)), unix.SizeofSockaddrInet6)
		if got := wire[2:][:len(tt.wire)]; string(got) != string(tt.wire) {
			t.Errorf("%s: % x, want % x", tt.endpoint, got, tt.wire)
		}
		if got := decodeSockaddr(&p.name); got != p.Endpoint || got.Addr().Is4In6() {
			t.Errorf("%s: decoded %s", tt.endpoint, got)
		}
	}
	mapped := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: netip.MustParseAddr("::ffff:192.0.2.7").As16()}
	if got := decodeSockaddr(&mapped).Addr(); got != netip.MustParseAddr("192.0.2.7") {
		t.Errorf("IPv4-mapped: %s", got)
	}
	if got := decodeSockaddr(&unix.RawSockaddrInet6{Family: unix.AF_UNIX}); got.IsValid() {
		t.Errorf("another family: %s", got)
	}
}

// randomPrefix returns a prefix of either family from a small space, so that
// many nest.
func randomPrefix(rnd *rand.Rand) netip.Prefix {
	a := randomAddr(rnd)
	p, err := a.Prefix(rnd.IntN(a.BitLen() + 1))
	if err != nil {
		panic(err)
	}
	return p
}

func randomAddr(rnd *rand.Rand) netip.Addr {
	if rnd.IntN(2) == 0 {
		return netip.AddrFrom4([4]byte{10, byte(rnd.IntN(4)), byte(rnd.IntN(4)), byte(rnd.IntN(256))})
	}
	b := [16]byte{0xfd, byte(rnd.IntN(2)), 0, byte(rnd.IntN(4)), 15: byte(rnd.IntN(8))}
	return netip.AddrFrom16(b)
}

func TestLookupIsTheLongestMatch(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		var peers []*Peer
		for i := range 1 + rnd.IntN(40) {
			var subnets []netip.Prefix
			for range 1 + rnd.IntN(3) {
				subnets = append(subnets, randomPrefix(rnd))
			}
			peers = append(peers, NewPeer(subnets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 1)))
		}
		table := NewPeers(nil, peers)
		for range 2000 {
			a := randomAddr(rnd)
			var want *Peer
			bits := -1
			for _, p := range peers {
				for _, s := range p.Subnets {
					if s.Contains(a) && s.Bits() >= bits {
						want, bits = p, s.Bits()
					}
				}
			}
			if got := table.lookup(a); got != want {
				t.Fatalf("seed %d: %s belongs to %v, want %v", seed, a, got, want)
			}
		}
	}
}

func TestOwns(t *testing.T) {
	for a, want := range map[string]bool{
		"10.5.1.0": true, "10.5.1.255": true, "10.5.2.1": false, "fd00:5:1::9": true, "fd00:5:2::9": false,
	} {
		if got := nodes.owns(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %t", a, got)
		}
	}
}

func addr4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 5, 2, byte(i)}) }

func newTestResolver(t *Peers) *resolver {
	r := newResolver()
	r.use(t)
	return r
}

// newCachingResolver asks its LRU for addresses of both families.
func newCachingResolver(t *Peers) *resolver {
	r := newTestResolver(t)
	r.lru4, r.lru6 = true, true
	return r
}

func TestResolverCountsHitsAndMisses(t *testing.T) {
	r := newCachingResolver(nodes)
	var c metrics.Shard
	for _, step := range []struct {
		addr         netip.Addr
		want         *Peer
		hits, misses uint64
	}{
		{addr4(1), peerB, 0, 1}, // table
		{addr4(1), peerB, 1, 1}, // memo
		{addr4(2), peerB, 1, 2},
		{addr4(1), peerB, 2, 2}, // LRU
		{netip.MustParseAddr("10.9.9.9"), nil, 2, 3},
		{netip.MustParseAddr("10.9.9.9"), nil, 2, 4}, // not remembered
		{addr4(1), peerB, 3, 4},
		{netip.MustParseAddr("fd00:5:2::1"), peerB, 3, 5},
	} {
		if got := r.peer(step.addr); got != step.want {
			t.Errorf("%s: %v", step.addr, got)
		}
		r.flush(&c)
		if h, m := c.CacheHits.Load(), c.CacheMisses.Load(); h != step.hits || m != step.misses {
			t.Errorf("after %s: %d hits, %d misses; want %d, %d", step.addr, h, m, step.hits, step.misses)
		}
	}
}

func TestUnknownAddressesPushNothingOut(t *testing.T) {
	r := newCachingResolver(nodes)
	r.peer(addr4(1))
	for i := range 3 * lruSize {
		if r.peer(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})) != nil {
			t.Fatal("a peer for an unknown address")
		}
	}
	r.hits, r.misses = 0, 0
	if r.peer(addr4(1)) != peerB || r.hits != 1 || r.lru.Len() != 1 {
		t.Errorf("%d hits, %d entries", r.hits, r.lru.Len())
	}
}

func TestResolverKeepsWhatWasUsedLast(t *testing.T) {
	wide := NewPeer([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, netip.MustParseAddrPort("192.0.2.9:1"))
	r := newCachingResolver(NewPeers(nil, []*Peer{wide}))
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}) }
	for i := range lruSize + 10 {
		r.peer(at(0)) // always fresh
		r.peer(at(i))
	}
	if n := r.lru.Len(); n != lruSize {
		t.Errorf("%d entries, want %d", n, lruSize)
	}
	r.hits, r.misses = 0, 0
	if r.peer(at(0)); r.hits != 1 {
		t.Error("the address in use was pushed out")
	}
	if r.peer(at(1)); r.misses != 1 {
		t.Error("the address used least was not")
	}
}

func TestNewTableIsSeenByTheNextBatch(t *testing.T) {
	r := newCachingResolver(nodes)
	r.peer(addr4(1))
	r.peer(addr4(2)) // one in the memo, one in the LRU only
	moved := NewPeers(own, []*Peer{NewPeer(peerB.Subnets, peerC.Endpoint)})
	r.use(nodes)
	if r.peer(addr4(1)); r.hits != 1 {
		t.Error("the same table emptied the caches")
	}
	r.use(moved)
	for i := range 3 {
		if got := r.peer(addr4(i)); got != moved.All()[0] {
			t.Errorf("%s: %v", addr4(i), got)
		}
	}
	r.use(NewPeers(own, nil))
	for i := range 3 {
		if got := r.peer(addr4(i)); got != nil {
			t.Errorf("%s after its lease was removed: %v", addr4(i), got)
		}
	}
}

// TestLRUIsAskedWhereItIsFasterThanTheTable: see lruSubnets6.
func TestLRUIsAskedWhereItIsFasterThanTheTable(t *testing.T) {
	large, _ := cluster6(lruSubnets6)
	for _, tt := range []struct {
		name       string
		peers      *Peers
		lru4, lru6 bool
	}{
		{"few subnets", nodes, lruAlways, lruAlways},
		{"one IPv6 subnet fewer than the bound", NewPeers(own, large[1:]), lruAlways, lruAlways},
		{"as many as the bound", NewPeers(own, large), lruAlways, true},
	} {
		r := newTestResolver(tt.peers)
		if r.lru4 != tt.lru4 || r.lru6 != tt.lru6 {
			t.Errorf("%s: LRU for IPv4 %t, IPv6 %t", tt.name, r.lru4, r.lru6)
		}
		for range 2 {
			for _, p := range []netip.Prefix{tt.peers.All()[0].Subnets[0], tt.peers.All()[1].Subnets[0]} {
				if got := r.peer(p.Addr()); got != tt.peers.lookup(p.Addr()) {
					t.Errorf("%s: %s belongs to %v", tt.name, p.Addr(), got)
				}
			}
		}
	}
}

// TestBothCachesForgetAnOldTable is TestNewTableIsSeenByTheNextBatch with the LRU
// in use before and after.
func TestBothCachesForgetAnOldTable(t *testing.T) {
	peers, pods := cluster6(lruSubnets6)
	r := newTestResolver(NewPeers(own, peers))
	r.peer(pods[0])
	r.peer(pods[1])
	moved := append([]*Peer{NewPeer(peers[0].Subnets, peerC.Endpoint)}, peers[1:]...)
	r.use(NewPeers(own, moved))
	r.peer(pods[1])
	if got := r.peer(pods[0]); got != moved[0] {
		t.Errorf("%s: %v", pods[0], got)
	}
}

func TestSourceChecks(t *testing.T) {
	const (
		b, c, stranger = "192.0.2.2", "192.0.2.3", "198.51.100.1"
		podB, podC     = "10.5.2.9", "10.5.3.9"
		ours, other    = "10.5.1.9", "10.5.9.9"
	)
	for _, tt := range []struct {
		name               string
		from, src, dst     string
		strict, inner, off metrics.Drop
	}{
		{"a pod of its own", b, podB, ours, admitted, admitted, admitted},
		{"over IPv6 inside", b, "fd00:5:2::9", "fd00:5:1::9", admitted, admitted, admitted},
		{"another node's pod", b, podC, ours, metrics.DropSpoofedSource, admitted, admitted},
		{"an address of no lease", b, other, ours, metrics.DropSpoofedSource, metrics.DropSpoofedSource, admitted},
		{"our own address", b, ours, ours, metrics.DropSpoofedSource, metrics.DropSpoofedSource, admitted},
		{"stranger with a peer's pod", stranger, podB, ours, metrics.DropUnknownPeer, admitted, admitted},
		{"stranger with anything", stranger, other, ours, metrics.DropUnknownPeer, metrics.DropSpoofedSource, admitted},
		{"not for us", b, podB, podC, metrics.DropForeignDestination, metrics.DropForeignDestination, admitted},
		{"for nobody", c, podC, other, metrics.DropForeignDestination, metrics.DropForeignDestination, admitted},
		{"multicast", b, podB, "224.0.0.1", metrics.DropForeignDestination, metrics.DropForeignDestination, admitted},
		{"sender of neither family", "", podB, ours, metrics.DropUnknownPeer, admitted, admitted},
	} {
		for mode, want := range map[SourceCheck]metrics.Drop{CheckStrict: tt.strict, CheckInner: tt.inner, CheckOff: tt.off} {
			checker := sourceChecker{mode: mode, resolver: newResolver()}
			checker.use(nodes)
			h := encap.Header{Src: netip.MustParseAddr(tt.src), Dst: netip.MustParseAddr(tt.dst)}
			var from netip.Addr
			if tt.from != "" {
				from = netip.MustParseAddr(tt.from)
			}
			for round := range 2 { // the second time from the caches
				peer, got := checker.admit(from, &h)
				if checker.stranger(from) {
					peer, got = nil, metrics.DropUnknownPeer
				}
				if got != want {
					t.Errorf("%s, %s, round %d: %v, want %v", tt.name, mode, round, got, want)
				}
				if want == admitted && peer != nodes.lookup(h.Src) {
					t.Errorf("%s, %s: counted for %v", tt.name, mode, peer)
				}
			}
		}
	}
}

func TestOwnSubnetsAreCheckedAgainAfterAChange(t *testing.T) {
	checker := sourceChecker{mode: CheckStrict, resolver: newResolver()}
	h := encap.Header{Src: addr4(9), Dst: netip.MustParseAddr("10.5.1.9")}
	checker.use(nodes)
	checker.admit(peerB.Endpoint.Addr(), &h)
	checker.use(NewPeers(nil, nodes.All()))
	if _, got := checker.admit(peerB.Endpoint.Addr(), &h); got != metrics.DropForeignDestination {
		t.Errorf("%v", got)
	}
}

func TestSourceCheckReadsWhatItWrites(t *testing.T) {
	for _, c := range []SourceCheck{CheckStrict, CheckInner, CheckOff} {
		got := SourceCheck(99)
		if err := got.Set(c.String()); err != nil || got != c {
			t.Errorf("Set(%q): %v, %v", c, got, err)
		}
	}
	c := CheckInner
	if err := c.Set("lax"); err == nil || c != CheckInner {
		t.Errorf("Set(lax): %v, %v", c, err)
	}
}
