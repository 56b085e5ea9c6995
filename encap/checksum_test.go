package encap

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// filled returns n times x.
func filled(n int, x byte) []byte { return bytes.Repeat([]byte{x}, n) }

func TestSumEqualsReferenceAtEveryLengthAndAlignment(t *testing.T) {
	for name, buf := range map[string][]byte{
		"pattern": pattern(64<<10 + 16),
		"zeros":   make([]byte, 64<<10+16),
		"carries": filled(64<<10+16, 0xff), // every addition carries
	} {
		lengths := []int{1448, 8948, 65535, 65536}
		for n := range 201 {
			lengths = append(lengths, n)
		}
		for align := range 8 {
			for _, n := range lengths {
				b := buf[align : align+n]
				if got, want := fold(sum(b, 0)), refSum(b); got != want {
					t.Fatalf("%s: %d bytes at alignment %d: %#04x, want %#04x", name, n, align, got, want)
				}
			}
		}
	}
}

// A CPU with vector instructions must use them: a build tag or a probe that is
// lost would cost nothing but time.
func TestVectorLoopIsUsedWhereTheCPUHasIt(t *testing.T) {
	want := runtime.GOARCH == "arm64"
	if runtime.GOARCH == "amd64" {
		info, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			t.Fatal(err)
		}
		want = slices.Contains(strings.Fields(string(info)), "avx2")
	}
	if vectorSum != want {
		t.Errorf("vector loop in use: %v, want %v on this CPU", vectorSum, want)
	}
}

// The vector loop and the loop in Go are each other's oracle at every length
// around the blocks of both.
func TestVectorLoopAgreesWithTheLoopInGo(t *testing.T) {
	for _, buf := range [][]byte{pattern(4096), filled(4096, 0xff), make([]byte, 4096)} {
		for n := range len(buf) - 8 {
			b := buf[n%8:][:n]
			var word [2]byte
			binary.NativeEndian.PutUint16(word[:], fold(sumWords(b, 0)))
			if got, want := fold(sum(b, 0)), binary.BigEndian.Uint16(word[:]); got != want {
				t.Fatalf("%d bytes: %#04x, the loop in Go returns %#04x", n, got, want)
			}
		}
	}
}

func TestSumContinuesFromAnyAccumulator(t *testing.T) {
	b := pattern(77)
	for _, acc := range []uint64{0, 1, 0xffff, 0x10000, math.MaxUint32, math.MaxUint64 - 1, math.MaxUint64} {
		folded := fold(acc)
		want := refSum([]byte{byte(folded >> 8), byte(folded)}, b)
		if got := fold(sum(b, acc)); got != want {
			t.Errorf("from %#x: %#04x, want %#04x", acc, got, want)
		}
	}
}

func TestFoldKeepsTheOnesComplementValue(t *testing.T) {
	for _, acc := range []uint64{0, 1, 0xfffe, 0xffff, 0x10000, 0x1fffe, 1<<32 - 1, 1 << 32, 1<<48 - 1, math.MaxUint64 - 1, math.MaxUint64} {
		want := uint16(acc % 0xffff)
		if want == 0 && acc != 0 {
			want = 0xffff // the two zeros differ: only nothing sums to +0
		}
		if got := fold(acc); got != want {
			t.Errorf("fold(%#x) = %#04x, want %#04x", acc, got, want)
		}
	}
}

func TestChecksumsValidSeesEveryDamagedByte(t *testing.T) {
	for name, p := range map[string]packet{
		"tcp4": tcp4(33), "tcp6": tcp6(34), "udp4": udp4(35), "udp6": udp6(1),
		"tcp4 timestamps": tcp4(3).with(func(p *packet) { p.tcpOpts = timestamps }),
	} {
		b := p.bytes()
		ipLen, from := 20, 0
		if p.v6 {
			ipLen, from = 40, 8 // no checksum covers what precedes the addresses
		}
		if !checksumsValid(b, ipLen, p.proto) {
			t.Errorf("%s: refused, though right", name)
		}
		for i := from; i < len(b); i++ {
			if i == 0 {
				continue // version and header length are Parse's
			}
			bad := slices.Clone(b)
			bad[i] ^= 0x10
			if checksumsValid(bad, ipLen, p.proto) {
				t.Errorf("%s: byte %d damaged, not seen", name, i)
			}
		}
	}
}

func TestChecksumsValidDoesNotTrustUDPWithoutChecksum(t *testing.T) {
	// Everything sums up, with the checksum or without.
	b := udpSummingToZero().with(func(p *packet) { p.noChecksum = true }).bytes()
	if refVerify(b, 20, protoUDP) != nil || checksumsValid(b, 20, protoUDP) {
		t.Error("a datagram without checksum counts as verified")
	}
}

func TestCompleteChecksumFinishesWhatTheKernelLeft(t *testing.T) {
	for name, p := range map[string]packet{
		"tcp4": tcp4(1001), "tcp6": tcp6(1000), "udp4": udp4(0), "udp6": udp6(9),
		"udp sum of zero is sent as 0xffff": udpSummingToZero(),
		"behind extension headers":          tcp6(50).with(func(p *packet) { p.ext = []extHeader{hopByHop, destOpts16} }),
	} {
		want := p.bytes()
		start, offset := len(want)-len(p.payload)-8, 6
		if p.proto == protoTCP {
			start, offset = len(want)-len(p.payload)-20, 16
		}
		got := refPartial(slices.Clone(want), start, p.proto)
		if !CompleteChecksum(got, start, offset) || !bytes.Equal(got, want) {
			t.Errorf("%s:\n got % x\nwant % x", name, got, want)
		}
	}
}

// udpSummingToZero returns a datagram whose checksum computes to zero.
func udpSummingToZero() packet {
	p := udp4(2).with(func(p *packet) { p.payload = []byte{0, 0} })
	b := p.bytes()
	p.payload = b[26:28] // adding its own complement leaves nothing
	return p
}

func TestCompleteChecksumRefusesAFieldOutsideThePacket(t *testing.T) {
	const n = 40
	for _, c := range []struct {
		start, offset int
		ok            bool
	}{
		{0, n - 2, true}, {n - 2, 0, true}, {20, 16, true},
		{0, n - 1, false}, {n - 1, 0, false}, {n, 0, false}, {n + 1, 0, false},
		{-1, 16, false}, {20, -1, false},
		{0xffff, 0xffff, false}, {math.MaxInt, 1, false}, {1, math.MaxInt, false}, {math.MaxInt, math.MaxInt, false},
	} {
		b := pattern(n)
		if ok := CompleteChecksum(b, c.start, c.offset); ok != c.ok {
			t.Errorf("start %d, offset %d: %v, want %v", c.start, c.offset, ok, c.ok)
		} else if !ok && !bytes.Equal(b, pattern(n)) {
			t.Errorf("start %d, offset %d: refused, but written", c.start, c.offset)
		}
	}
	if CompleteChecksum(nil, 0, 0) {
		t.Error("accepted an empty packet")
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint64(0))
	f.Add(filled(129, 0xff), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, b []byte, acc uint64) {
		folded := fold(acc)
		want := refSum([]byte{byte(folded >> 8), byte(folded)}, b)
		if got := fold(sum(b, acc)); got != want {
			t.Fatalf("%#04x, want %#04x", got, want)
		}
	})
}
