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

var sink *Peer

func BenchmarkResolver(b *testing.B) {
	peers, pods := cluster(10)
	b.Run("memo", func(b *testing.B) {
		r := newTestResolver(NewPeers(nil, peers))
		b.ReportAllocs()
		for b.Loop() {
			sink = r.peer(pods[0])
		}
	})
	b.Run("LRU", func(b *testing.B) {
		r := newTestResolver(NewPeers(nil, peers))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			sink = r.peer(pods[i&7])
		}
	})
	for _, n := range []int{10, 1000, 50000} {
		peers, pods := cluster(n)
		table := NewPeers(nil, peers)
		b.Run(fmt.Sprintf("table of %d", n), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				sink = table.lookup(pods[i*7919%n])
			}
		})
	}
	b.Run("more pods than fit the LRU", func(b *testing.B) {
		r := newTestResolver(NewPeers(nil, peers))
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			sink = r.peer(netip.AddrFrom4([4]byte{10, 0, byte(i % 5), byte(i >> 3)}))
		}
	})
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
	x := newTX(newShard(q, discard{}), make([]byte, txArena))
	x.resolver.use(nodes)
	b.SetBytes(65495)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, errno := x.batch(); errno != unix.EAGAIN {
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
			r := newRX(s, make([]byte, rxSlots*slotSize))
			pkts := tcpTrain(64, 960, 960)
			place(b, r, 0, train(pkts))
			r.check.use(nodes)
			b.SetBytes(64 * 960)
			b.ReportAllocs()
			for b.Loop() {
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
