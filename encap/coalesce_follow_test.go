package encap

import (
	"bytes"
	"slices"
	"testing"
)

// kinds are packets of all kinds that are merged.
func kinds() []packet {
	all := slices.Clone(flows)
	for _, p := range tcpFlows {
		p.tcpOpts = timestamps
		all = append(all, p)
	}
	return all
}

// Nearly all packets of a train take the short way.
func TestPacketsOfATrainAreFollowed(t *testing.T) {
	for _, p := range kinds() {
		for _, partial := range []bool{true, false} {
			c := NewCoalescer(40, true, true)
			for i, b := range encoded(t, p.train(40), partial) {
				followed := c.Follow(b)
				if want := i >= 2; followed != want {
					t.Errorf("%v, partial %v: packet %d followed: %v", p, partial, i, followed)
				}
				if !followed {
					addAs(t, c, b)
				}
			}
			if _, sizes := delivered(t, c); !slices.Equal(sizes, []int{40}) {
				t.Errorf("%v, partial %v: runs of %v packets", p, partial, sizes)
			}
		}
	}
}

// Follow judges as Add does, whichever bit of a packet's header differs from what the
// packets before and after it have.
func TestFollowTakesWhatAddJoins(t *testing.T) {
	for _, p := range kinds() {
		for _, partial := range []bool{true, false} {
			pkts := encoded(t, p.train(7), partial)
			header := len(pkts[0]) - len(p.payload)
			for bit := range 8 * header {
				sent := slices.Clone(pkts)
				sent[4] = set8(sent[4], bit/8, sent[4][bit/8]^1<<(bit%8))
				compareFollow(t, p, sent)
			}
			for _, sent := range [][][]byte{
				slices.Delete(slices.Clone(pkts), 4, 5), // a gap
				slices.Insert(slices.Clone(pkts), 4, pkts[3]),
				slices.Insert(slices.Clone(pkts), 4, encoded(t, []packet{p}, !partial)...),
			} {
				compareFollow(t, p, sent)
			}
		}
	}
}

// compareFollow compares what becomes of packets with Follow and without. A packet that
// Parse refuses is not added.
func compareFollow(t *testing.T, p packet, sent [][]byte) {
	t.Helper()
	with, without := NewCoalescer(16, true, true), NewCoalescer(16, true, true)
	for _, b := range sent {
		if with.Follow(b) || addAs(t, with, b) {
			addAs(t, without, b)
		}
	}
	got, runs := written(with)
	want, sizes := written(without)
	if !slices.EqualFunc(got, want, bytes.Equal) || !slices.Equal(runs, sizes) {
		t.Errorf("%v: with Follow runs of %v packets, without it %v", p, runs, sizes)
	}
}

// written returns the bytes of the runs of c, and how many packets are in each.
func written(c *Coalescer) (all [][]byte, sizes []int) {
	for _, r := range c.Runs() {
		all = append(all, slices.Concat(c.Vectors(&r, nil)...))
		sizes = append(sizes, r.Segments)
	}
	return all, sizes
}

// encoded returns the bytes of packets, with their checksums left if partial is set.
func encoded(t *testing.T, pkts []packet, partial bool) (all [][]byte) {
	for _, p := range pkts {
		b := p.bytes()
		if partial {
			b, _ = p.partial(t)
		}
		all = append(all, b)
	}
	return all
}

// addAs adds b as the engine does, and reports whether it is well-formed.
func addAs(t *testing.T, c *Coalescer, b []byte) bool {
	t.Helper()
	var h Header
	if c.Full() {
		t.Fatal("full")
	}
	if !Parse(b, &h) {
		return false
	}
	if PartialChecksum(b, &h) {
		c.AddPartial(b, &h)
	} else {
		c.Add(b, &h)
	}
	return true
}
