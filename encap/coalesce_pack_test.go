package encap

import (
	"bytes"
	"slices"
	"testing"
)

// adjoining returns copies of pkts that lie one behind the other in memory, with a byte
// behind every fifth of them.
func adjoining(pkts [][]byte) (copies [][]byte) {
	memory := slices.Concat(pkts...)
	memory = append(memory, make([]byte, len(pkts)/5)...)
	for i, b := range pkts {
		n := copy(memory, b)
		copies = append(copies, memory[:n])
		if memory = memory[n:]; i%5 == 4 {
			memory = memory[1:]
		}
	}
	return copies
}

// lengths returns the lengths of the vectors of a run.
func lengths(vectors [][]byte) (n []int) {
	for _, v := range vectors {
		n = append(n, len(v))
	}
	return n
}

func TestTrainsArePackedInOnePiece(t *testing.T) {
	for _, p := range kinds() {
		for _, partial := range []bool{true, false} {
			pkts := encoded(t, p.train(40), partial)
			memory := slices.Concat(pkts...)
			c := NewCoalescer(40, true, true)
			for b := memory; len(b) > 0; b = b[len(pkts[0]):] {
				if pkt := b[:len(pkts[0])]; !c.Follow(pkt) {
					addAs(t, c, pkt)
				}
			}
			runs := c.Runs()
			want := slices.Concat(c.Vectors(&runs[0], nil)...)
			c.Pack(&runs[0])
			got := c.Vectors(&runs[0], nil)
			header := len(pkts[0]) - len(p.payload)
			if !slices.Equal(lengths(got), []int{header, 40 * len(p.payload)}) || !bytes.Equal(slices.Concat(got...), want) {
				t.Errorf("%v, partial %v: vectors of %v bytes, or others than before", p, partial, lengths(got))
			}
			out, sizes := accepted(t, c, runs)
			if whole := encoded(t, p.train(40), false); !slices.EqualFunc(out, whole, bytes.Equal) {
				t.Errorf("%v, partial %v: runs of %v packets, or with wrong content", p, partial, sizes)
			}
		}
	}
}

// A run has one piece for each of its parts that are adjacent in memory, whatever lies between
// the parts.
func TestOnlyNeighboursArePacked(t *testing.T) {
	a, b := tcp4(100).train(5), udp6(50).train(2)
	for name, c := range map[string]struct {
		memory []packet // in this order; a packet without protocol is a gap of a byte
		want   [][]int
	}{
		"a train":             {a, [][]int{{40, 500}}},
		"last shorter":        {append(slices.Clone(a[:2]), a[2].with(func(p *packet) { p.payload = p.payload[:7] })), [][]int{{40, 207}}},
		"one packet":          {a[:1], [][]int{{140}}},
		"a gap":               {[]packet{a[0], a[1], {}, a[2], a[3]}, [][]int{{40, 200, 200}}},
		"gaps everywhere":     {[]packet{a[0], {}, a[1], {}, a[2]}, [][]int{{40, 100, 100, 100}}},
		"another flow inside": {[]packet{a[0], a[1], b[0], a[2], a[3], b[1], a[4]}, [][]int{{40, 200, 200, 100}, {48, 50, 50}}},
	} {
		co := NewCoalescer(len(c.memory), true, true)
		var in [][]byte
		for _, p := range c.memory {
			if p.proto == 0 {
				in = append(in, []byte{0})
			} else {
				in = append(in, p.bytes())
			}
		}
		memory := slices.Concat(in...)
		for i, n := range lengths(in) {
			if c.memory[i].proto != 0 {
				add(t, co, memory[:n])
			}
			memory = memory[n:]
		}
		want, _ := delivered(t, co)
		got, _ := packed(t, co)
		var pieces [][]int
		for _, r := range co.runs {
			pieces = append(pieces, lengths(co.Vectors(&r, nil)))
		}
		if !slices.EqualFunc(pieces, c.want, slices.Equal) || !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: vectors of %v bytes, want %v; or others than without", name, pieces, c.want)
		}
	}
}

func TestPackDoesNotAllocate(t *testing.T) {
	in := adjoining(encoded(t, tcp4(1448).train(40), false))
	saved := make([][]byte, len(in))
	for i := range in {
		saved[i] = slices.Clone(in[i])
	}
	c := NewCoalescer(len(in), true, true)
	dst := make([][]byte, 0, len(in)+2)
	if n := testing.AllocsPerRun(10, func() {
		c.Reset()
		for i := range in {
			copy(in[i], saved[i])
			if !c.Follow(in[i]) {
				addAs(t, c, in[i])
			}
		}
		runs := c.Runs()
		c.Pack(&runs[0])
		dst = c.Vectors(&runs[0], dst[:0])
	}); n != 0 || len(dst) != 1+len(in)/5 {
		t.Errorf("%v allocations a batch, %d vectors", n, len(dst))
	}
}
