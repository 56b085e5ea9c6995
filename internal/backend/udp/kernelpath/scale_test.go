//go:build !nobpf

package kernelpath

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
)

// manyPeers returns n nodes with the kernel path, each with a subnet of each family.
func manyPeers(n int) []Peer {
	all := make([]Peer, n)
	for i := range all {
		hi, lo := byte(i>>8), byte(i)
		v6 := [16]byte{0xfd, 0, 5, 1, 0, 0, hi, lo}
		all[i] = Peer{Endpoint: netip.AddrFrom4([4]byte{10, 1, hi, lo}), Kernel: true, Subnets: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64 + hi, lo, 0}), 24), netip.PrefixFrom(netip.AddrFrom16(v6), 64),
		}}
	}
	return all
}

// maxMapMemory is what the maps may take for 5,000 peers, in bytes, on a machine with 16 CPUs.
const maxMapMemory = 10 << 20

func TestMapsOfFiveThousandPeersAreSmall(t *testing.T) {
	const n = 5000
	inNamespace(t, func(p *Path) {
		if _, err := p.Set([]netip.Prefix{own4, own6}, manyPeers(n)); err != nil {
			t.Fatal(err)
		}
		var memory uint64
		for _, m := range []*ebpf.Map{p.objects.Subnets, p.objects.Peers} {
			info, err := m.Info()
			if err != nil {
				t.Fatal(err)
			}
			size, ok := info.Memlock()
			if !ok {
				t.Fatalf("the kernel does not report the memory of map %s", info.Name)
			}
			t.Logf("%s: %d KiB", info.Name, size>>10)
			memory += size
		}
		if memory > maxMapMemory {
			t.Errorf("%d peers take %d bytes, more than %d", n, memory, maxMapMemory)
		}
		for _, peer := range []Peer{manyPeers(n)[0], manyPeers(n)[n/2], manyPeers(n)[n-1]} {
			source := peer.Subnets[0].Addr().Next()
			if verdict, _ := run(t, p, frame(peer.Endpoint, 0, inner4(source.String(), "10.5.1.7", 0, 33))); verdict != tcRedirect {
				t.Errorf("packet of %s: verdict %d", source, int32(verdict))
			}
		}
	})
}

func TestPeersBeyondTheRoomOfTheMapsAreLeftToUserSpace(t *testing.T) {
	const room = 100
	withRoom(t, room, func(p *Path) {
		all := manyPeers(2 * room)
		admitted := func(peer Peer) bool {
			source := peer.Subnets[0].Addr().Next()
			verdict, _ := run(t, p, frame(peer.Endpoint, 0, inner4(source.String(), "10.5.1.7", 0, 33)))
			return verdict == tcRedirect
		}
		for _, step := range []struct {
			what  string
			peers []Peer
			left  []netip.Addr
		}{
			{"one peer too many", all[:room+1], []netip.Addr{all[room].Endpoint}},
			{"all replaced", all[room:], nil},
			{"one peer", all[room : room+1], nil},
			{"all too many", all, endpoints(all[room:])},
		} {
			left, err := p.Set([]netip.Prefix{own4, own6}, step.peers)
			if err != nil || !slices.Equal(left, step.left) {
				t.Fatalf("%s: left %v, %v, want %v", step.what, left, err, step.left)
			}
			fit := endpoints(step.peers[:len(step.peers)-len(step.left)])
			for _, peer := range all {
				if got, want := admitted(peer), slices.Contains(fit, peer.Endpoint); got != want {
					t.Errorf("%s: packets of %s admitted: %v, want %v", step.what, peer.Endpoint, got, want)
				}
			}
		}
	})
}

func endpoints(peers []Peer) (all []netip.Addr) {
	for _, p := range peers {
		all = append(all, p.Endpoint)
	}
	return all
}

// A datagram that passes every look-up and is left as it is, so that it can be passed to
// the program again.
func BenchmarkLookUp(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 5000} {
		b.Run(fmt.Sprintf("peers=%d", n), func(b *testing.B) {
			inNamespace(b, func(p *Path) {
				if _, err := p.Set([]netip.Prefix{own4, own6}, manyPeers(n)); err != nil {
					b.Fatal(err)
				}
				peer := manyPeers(n)[n/2]
				packet := frame(peer.Endpoint, ce, inner4(peer.Subnets[0].Addr().Next().String(), "10.5.1.7", 0, 33))
				_, perRun, err := p.objects.Decapsulate.Benchmark(packet, max(b.N, 1000), b.ResetTimer)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(perRun.Nanoseconds()), "ns/packet")
			})
		})
	}
}

func BenchmarkSetPeers(b *testing.B) {
	inNamespace(b, func(p *Path) {
		all := manyPeers(5000)
		for b.Loop() {
			b.StopTimer()
			if _, err := p.Set([]netip.Prefix{own4, own6}, nil); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if _, err := p.Set([]netip.Prefix{own4, own6}, all); err != nil {
				b.Fatal(err)
			}
		}
	})
}
