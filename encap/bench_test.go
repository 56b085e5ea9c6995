package encap

import (
	"fmt"
	"testing"
)

func BenchmarkChecksum(b *testing.B) {
	for name, sum := range map[string]func([]byte, uint64) uint64{"sum": sum, "words": sumWords} {
		for _, n := range []int{64, 1448, 65535} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				buf := pattern(n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				var s uint16
				for b.Loop() {
					s += fold(sum(buf, 0))
				}
				_ = s
			})
		}
	}
}

func BenchmarkParse(b *testing.B) {
	for name, p := range map[string]packet{"IPv4": tcp4(1448), "IPv6": tcp6(1428)} {
		b.Run(name, func(b *testing.B) {
			pkt := p.bytes()
			var h Header
			b.ReportAllocs()
			for b.Loop() {
				Parse(pkt, &h)
			}
		})
	}
}

// A full TCP super-packet at the MSS of a 1500-byte underlay without options.
func BenchmarkSplit(b *testing.B) {
	pkt, super := tcp4(MaxPacket - 40).super(1448)
	hdr := make([]byte, 100)
	var h Header
	var s Splitter
	b.SetBytes(int64(len(pkt)))
	b.ReportAllocs()
	for b.Loop() {
		Parse(pkt, &h)
		if err := s.Reset(pkt, &h, super); err != nil {
			b.Fatal(err)
		}
		for s.Remaining() > 0 {
			s.Next(hdr)
		}
	}
}

// What one GRO train of a TCP stream holds.
func BenchmarkCoalesce(b *testing.B) {
	for _, flows := range []int{1, 8} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			const n = 46
			fs := manyFlows(tcp4(1448), flows)
			var in [][]byte
			for i := range n {
				f := &fs[i%flows]
				in = append(in, f.bytes())
				*f = f.next()
			}
			c := NewCoalescer(n, true, true)
			dst := make([][]byte, 0, n+2)
			b.SetBytes(n * int64(len(in[0])))
			b.ReportAllocs()
			for b.Loop() {
				c.Reset()
				for _, pkt := range in {
					var h Header
					Parse(pkt, &h)
					c.Add(pkt, &h)
				}
				runs := c.Runs()
				for i := range runs {
					dst = c.Vectors(&runs[i], dst[:0])
				}
			}
		})
	}
}
