package fastpath

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// cluster is a network of n nodes with a /24 each, and an address behind every
// one of them.
func cluster(n int) (peers []*Peer, pods []netip.Addr) {
	for i := range n {
		subnet := netip.AddrFrom4([4]byte{byte(10 + i>>16), byte(i >> 8), byte(i), 0})
		public := netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)})
		peers = append(peers, NewPeer([]netip.Prefix{netip.PrefixFrom(subnet, 24)}, netip.AddrPortFrom(public, 8285)))
		pods = append(pods, subnet.Next())
	}
	return peers, pods
}

// cluster6 is the same with a /112 each, which the table goes deepest for.
func cluster6(n int) (peers []*Peer, pods []netip.Addr) {
	for i := range n {
		a := [16]byte{0xfd, byte(i), 5, byte(i >> 3), 0, byte(i >> 16), byte(i >> 8), byte(i), byte(i), byte(i >> 8), byte(i >> 4), byte(i >> 2), byte(i >> 1), byte(i)}
		subnet := netip.AddrFrom16(a)
		public := netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)})
		peers = append(peers, NewPeer([]netip.Prefix{netip.PrefixFrom(subnet, 112)}, netip.AddrPortFrom(public, 8285)))
		pods = append(pods, subnet.Next())
	}
	return peers, pods
}

var sink *Peer

// BenchmarkResolver looks up 512 addresses in turn, which fit the LRU: in the
// table and through the LRU, for both families and all sizes of the table. These
// are what lruSubnets6 is chosen by.
func BenchmarkResolver(b *testing.B) {
	b.Run("memo", func(b *testing.B) {
		peers, pods := cluster(10)
		r := newTestResolver(NewPeers(nil, peers))
		b.ReportAllocs()
		for b.Loop() {
			sink = r.peer(pods[0])
		}
	})
	for _, family := range []struct {
		name    string
		cluster func(int) ([]*Peer, []netip.Addr)
	}{{"IPv4", cluster}, {"IPv6", cluster6}} {
		for _, n := range []int{10, 1000, 50000, 200000} {
			peers, pods := family.cluster(n)
			r := newCachingResolver(NewPeers(nil, peers))
			var set [512]netip.Addr
			for i := range set {
				set[i] = pods[i*7919%n]
			}
			b.Run(fmt.Sprintf("%s, table of %d", family.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					sink = r.peers.lookup(set[i%len(set)])
				}
			})
			b.Run(fmt.Sprintf("%s, LRU before %d", family.name, n), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					sink = r.find(set[i%len(set)])
				}
			})
		}
	}
}

func BenchmarkNewPeers(b *testing.B) {
	for _, n := range []int{10, 1000, 50000} {
		peers, _ := cluster(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				NewPeers(own, peers)
			}
		})
	}
}

// BenchmarkTX is the work of user space for a super-packet of 64 KiB: look-up,
// cutting with checksums, gathering.
func BenchmarkTX(b *testing.B) {
	q := &fakeQueue{reads: [][]byte{superPacket(toB(65495), 1388)}, loop: true}
	x := newTX(newShard(q, discard{}), make([]byte, normalFootprint.txArena))
	x.resolver.use(nodes)
	b.SetBytes(65495)
	b.ReportAllocs()
	for b.Loop() {
		x.tap.use()
		if _, _, errno := x.batch(false); errno != unix.EAGAIN {
			b.Fatal(errno)
		}
		x.sends.flush()
	}
}

// BenchmarkRX is the same for a train of 64 segments: checks, joining with
// verified checksums, the vectors of the write.
func BenchmarkRX(b *testing.B) {
	for _, merge := range []bool{true, false} {
		b.Run(fmt.Sprintf("merge=%t", merge), func(b *testing.B) {
			s := newShard(&fakeQueue{forget: true}, discard{})
			s.mergeTCP = merge
			r := newRX(s, make([]byte, normalFootprint.rxSlots*slotSize))
			pkts := tcpTrain(64, 960, 960)
			place(b, r, 0, train(pkts))
			again := arriveAgain(r)
			r.check.use(nodes)
			b.SetBytes(64 * 960)
			b.ReportAllocs()
			for b.Loop() {
				again() // the copy that recvmmsg makes
				r.tap.use()
				if err := r.datagram(0); err != nil {
					b.Fatal(err)
				}
				if err := r.write(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
