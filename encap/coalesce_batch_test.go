package encap

import (
	"bytes"
	"slices"
	"testing"
)

// A run grows up to what one super-packet can hold, not a byte or segment
// further.
func TestRunsEndAtTheLimits(t *testing.T) {
	for name, c := range map[string]struct {
		p    packet
		n    int
		want []int
	}{
		"TCP at 1448":           {tcp4(1448), 46, []int{45, 1}},
		"exactly 65535 bytes":   {tcp4(13099), 6, []int{5, 1}},
		"a byte a packet more":  {tcp4(13100), 5, []int{4, 1}},
		"IPv6, 65535 bytes":     {tcp6(2619), 26, []int{25, 1}},
		"UDP, 65535 bytes":      {udp4(5039), 14, []int{13, 1}},
		"UDP segments":          {udp4(1), 130, []int{64, 64, 2}},
		"UDP segments of IPv6":  {udp6(100), 65, []int{64, 1}},
		"vectors of a write":    {tcp4(1), 600, []int{512, 88}},
		"sequence number wraps": {tcp4(100).with(func(p *packet) { p.seq = 0xffffff00 }), 5, []int{5}},
		"ID wraps":              {tcp4(100).with(func(p *packet) { p.id, p.frag = 0xfffe, 0 }), 5, []int{5}},
		"a jumbo, nothing fits": {tcp4(65000), 2, []int{1, 1}},
	} {
		co := NewCoalescer(c.n, true, true)
		var in [][]byte
		for _, p := range c.p.train(c.n) {
			in = append(in, p.bytes())
		}
		add(t, co, in...)
		if out, sizes := delivered(t, co); !slices.Equal(sizes, c.want) || !slices.EqualFunc(in, out, bytes.Equal) {
			t.Errorf("%s: runs of %v, want %v", name, sizes, c.want)
		}
	}
}

func TestInterleavedFlowsAreMergedEach(t *testing.T) {
	a := tcp4(100)
	for name, b := range map[string]packet{
		"source port":      a.with(func(p *packet) { p.sport++ }),
		"destination port": a.with(func(p *packet) { p.dport++ }),
		"source":           a.with(func(p *packet) { p.src++ }),
		"destination":      a.with(func(p *packet) { p.dst++ }),
		"protocol":         udp4(100),
		"IP version":       tcp6(100),
		"direction":        a.with(func(p *packet) { p.src, p.dst, p.sport, p.dport = p.dst, p.src, p.dport, p.sport }),
	} {
		co := NewCoalescer(6, true, true)
		for i, p := range a.train(3) {
			add(t, co, p.bytes(), b.train(3)[i].bytes())
		}
		if _, sizes := delivered(t, co); !slices.Equal(sizes, []int{3, 3}) {
			t.Errorf("flows that differ in the %s: runs of %v", name, sizes)
		}
	}
}

func TestOtherHostsDoNotEndARun(t *testing.T) {
	for name, other := range map[string]packet{
		"an ACK from another source":    tcp4(0).with(func(p *packet) { p.src++ }),
		"an ACK to another destination": tcp4(0).with(func(p *packet) { p.dst++ }),
		"an ACK the other way":          tcp4(0).with(func(p *packet) { p.src, p.dst = p.dst, p.src }),
		"an ACK of IPv6":                tcp6(0),
	} {
		first := tcp4(100)
		co := NewCoalescer(3, true, true)
		add(t, co, first.bytes(), other.bytes(), first.next().bytes())
		if _, sizes := delivered(t, co); !slices.Equal(sizes, []int{2, 1}) {
			t.Errorf("%s: runs of %v", name, sizes)
		}
	}
}

func TestManyInterleavedFlows(t *testing.T) {
	for _, c := range []struct{ flows, runs int }{
		{1, 1}, {maxOpenRuns, maxOpenRuns},
		{maxOpenRuns + 1, 3 * (maxOpenRuns + 1)}, // each flow's run is given up before its next packet comes
	} {
		co := NewCoalescer(3*c.flows, true, true)
		var in [][]byte
		for i := range 3 {
			for f := range c.flows {
				p := udp6(50).with(func(p *packet) { p.sport += uint16(f) })
				p.payload = filled(50, byte(i))
				in = append(in, p.bytes())
			}
		}
		add(t, co, in...)
		out, sizes := delivered(t, co)
		if len(sizes) != c.runs {
			t.Errorf("%d flows: runs of %v, want %d", c.flows, sizes, c.runs)
		}
		sameFlowOrder(t, in, out)
	}
}

func TestDeviceSaysWhatIsMerged(t *testing.T) {
	for _, c := range []struct {
		tcp, udp bool
		want     []int
	}{
		{true, true, []int{2, 2}}, {true, false, []int{2, 1, 1}},
		{false, true, []int{1, 1, 2}}, {false, false, []int{1, 1, 1, 1}},
	} {
		co := NewCoalescer(4, c.tcp, c.udp)
		for _, p := range slices.Concat(tcp4(10).train(2), udp4(10).train(2)) {
			add(t, co, p.bytes())
		}
		if _, sizes := delivered(t, co); !slices.Equal(sizes, c.want) {
			t.Errorf("TCP %v, UDP %v: runs of %v, want %v", c.tcp, c.udp, sizes, c.want)
		}
	}
}

func TestRefusedRunsAreWrittenAsTheyCame(t *testing.T) {
	co := NewCoalescer(4, true, true)
	var in, out [][]byte
	for _, p := range tcp4(100).train(4) {
		in = append(in, p.bytes())
	}
	add(t, co, in[:3]...)
	co.Disable() // the device has refused a run: the one at hand is not lost
	add(t, co, in[3])
	runs := co.Runs()
	if len(runs) != 2 {
		t.Fatalf("%d runs", len(runs))
	}
	for i := range runs {
		co.Vectors(&runs[i], nil) // refused
		out = co.Packets(&runs[i], out)
	}
	if !slices.EqualFunc(in, out, bytes.Equal) {
		t.Error("the packets differ from those added")
	}
}

func TestSuperPacketsKeepTheirPlace(t *testing.T) {
	first, third := tcp4(100), tcp4(100).next()
	second, super := third.with(func(p *packet) { p.payload = pattern(3000) }).super(1000)
	var h Header
	Parse(second, &h)
	co := NewCoalescer(3, true, true)
	add(t, co, first.bytes())
	co.AddSuper(second, &h, super)
	add(t, co, third.bytes())
	runs := co.Runs()
	if len(runs) != 3 || runs[1].Super != super || !bytes.Equal(slices.Concat(co.Vectors(&runs[1], nil)...), second) {
		t.Errorf("%d runs", len(runs))
	}
}

func TestBatchHoldsAsManyPacketsAsAsked(t *testing.T) {
	for n := 1; n <= 9; n++ {
		for _, c := range []struct {
			name string
			step packet // what changes from packet to packet
		}{{"one run", packet{}}, {"runs of one", packet{ttl: 1}}} {
			co := NewCoalescer(n, true, true)
			for range 2 { // Reset makes room again
				got := 0
				for p := udp4(9); !co.Full(); p.ttl += c.step.ttl {
					add(t, co, p.bytes())
					got++
				}
				if got != n {
					t.Errorf("%s: %d packets, want %d", c.name, got, n)
				}
				co.Reset()
				if len(co.Runs()) != 0 {
					t.Error("runs after Reset")
				}
			}
		}
	}
}

func TestResetForgetsOpenRuns(t *testing.T) {
	co := NewCoalescer(1, true, true)
	for _, p := range tcp6(100).train(3) {
		in := p.bytes()
		add(t, co, in)
		if out, sizes := delivered(t, co); len(sizes) != 1 || !bytes.Equal(out[0], in) {
			t.Errorf("runs of %v", sizes)
		}
		co.Reset()
	}
}

func TestCoalescerDoesNotAllocate(t *testing.T) {
	longest := tcp6(100).with(func(p *packet) { p.tcpOpts = make([]byte, 40) })
	for name, flows := range map[string][]packet{
		"one flow":                  {tcp4(1448)},
		"UDP":                       {udp4(100), udp6(100)},
		"the longest headers":       {longest},
		"more flows than open runs": manyFlows(tcp4(500), maxOpenRuns+5),
		"full of pairs":             manyFlows(longest, 32),
	} {
		const n = 64
		co := NewCoalescer(n, true, true)
		var in [][]byte
		for len(in) < n {
			if name == "full of pairs" { // each pair in its own super-packet
				f := flows[len(in)/2]
				in = append(in, f.bytes(), f.next().bytes())
				continue
			}
			i := len(in) % len(flows)
			in = append(in, flows[i].bytes())
			flows[i] = flows[i].next()
		}
		dst := make([][]byte, 0, n+2)
		slab := cap(co.slab) // AllocsPerRun does not count the first run
		if allocs := testing.AllocsPerRun(10, func() {
			co.Reset()
			for _, b := range in {
				var h Header
				Parse(b, &h)
				co.Add(b, &h)
			}
			runs := co.Runs()
			for i := range runs {
				dst = co.Vectors(&runs[i], dst[:0])
			}
		}); allocs != 0 || cap(co.slab) != slab {
			t.Errorf("%s: %v allocations a batch, slab grows from %d to %d", name, allocs, slab, cap(co.slab))
		}
	}
}

// manyFlows returns n flows like p.
func manyFlows(p packet, n int) []packet {
	var out []packet
	for i := range n {
		out = append(out, p.with(func(p *packet) { p.sport += uint16(i) }))
	}
	return out
}
