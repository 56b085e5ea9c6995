package encap

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"
)

// flowKey names the flow of a packet: its five-tuple, without the ports where
// there are none to be seen.
func flowKey(b []byte) string {
	if b[0]>>4 == 6 {
		key := string(b[6:7]) + string(b[8:40])
		if b[6] == protoTCP || b[6] == protoUDP {
			key += string(b[40:44])
		}
		return key
	}
	key := string(b[9:10]) + string(b[12:20])
	if binary.BigEndian.Uint16(b[6:])&0x3fff == 0 { // no fragment
		ipLen := int(b[0]&15) * 4
		key += string(b[ipLen : ipLen+4])
	}
	return key
}

// sameFlowOrder checks that each flow of in comes out complete, in order and
// byte by byte, but for the ID of IPv4 packets that must not be fragmented:
// it has no meaning (RFC 6864 §4.1), and the kernel numbers segments itself.
func sameFlowOrder(t testing.TB, in, out [][]byte) {
	t.Helper()
	if len(in) != len(out) {
		t.Fatalf("%d packets become %d", len(in), len(out))
	}
	byFlow := map[string][][]byte{}
	for _, b := range out {
		byFlow[flowKey(b)] = append(byFlow[flowKey(b)], b)
	}
	for i, want := range in {
		flow := byFlow[flowKey(want)]
		if len(flow) == 0 {
			t.Fatalf("packet %d is lost", i)
		}
		got := flow[0]
		byFlow[flowKey(want)] = flow[1:]
		if bytes.Equal(got, want) {
			continue
		}
		if want[0]>>4 == 4 && binary.BigEndian.Uint16(want[6:]) == 0x4000 && refSum(want[:20]) == 0xffff {
			got = slices.Clone(got)
			copy(got[4:6], want[4:6])
			copy(got[10:12], want[10:12])
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("packet %d comes\n out % x\n for % x", i, got[:min(len(got), 80)], want[:min(len(want), 80)])
		}
	}
}

// traffic reads a script of three bytes a packet: its flow, what is special
// about it, and its size. Flows are few, so that packets meet.
func traffic(script []byte) (pkts [][]byte) {
	sizes := []int{100, 100, 100, 100, 99, 101, 1, 1448}
	flows := map[byte]packet{}
	for i := 0; i+3 <= len(script) && len(pkts) < 200; i += 3 {
		id, special, size := script[i]&15, script[i+1], script[i+2]
		p, known := flows[id]
		if !known {
			p = tcp4(0).with(func(p *packet) {
				p.v6, p.seq, p.id = id&1 != 0, 0xffffff00, 0xfff0
				p.src, p.sport = 1+id>>3&1, p.sport+uint16(id>>2&1)
				if id&2 != 0 {
					p.proto = protoUDP
				}
			})
		}
		p.payload = pattern(sizes[size%8])
		p.payload[0] = byte(len(pkts)) // distinguishes packets
		// What stays as it is with the flow.
		switch special {
		case 1:
			p.tos ^= 0x08
		case 2:
			p.tos ^= 0x80
		case 3:
			p.tos ^= ecnCE
		case 4:
			p.ttl ^= 1
		case 5:
			p.label ^= 1
		case 6:
			p.frag ^= 0x4000
		case 7:
			p.window ^= 1
		case 8:
			p.ack++
		case 9:
			p.tcpOpts = timestamps[:12-len(p.tcpOpts)]
		case 10:
			p.seq += 1000
		case 11:
			p.id += 1000
		}
		flows[id] = p.next()
		// What concerns this packet.
		once := p
		switch special {
		case 15, 16, 17, 18, 19, 20, 21, 22, 23:
			once.flags ^= 1 << (23 - special)
		case 24:
			once.payload = nil
		case 25:
			once.noChecksum = true
		case 26:
			once.frag = 0x2000 | uint16(size)>>1
			once.ext = []extHeader{{protoIPv6Frag, []byte{0, 0, 1, 0, 0, 0, 9}}}
		case 27:
			once.ipOpts, once.ext = []byte{1, 1, 1, 0}, []extHeader{hopByHop}
		case 28:
			flows[id] = p // sent again
		case 29:
			once.proto = 132
		}
		b := once.bytes()
		if special == 30 {
			at := int(size) % len(b)
			if damaged := set8(b, at, b[at]^0x40); Parse(damaged, new(Header)) {
				b = damaged
			}
		}
		pkts = append(pkts, b)
	}
	return pkts
}

// checkCoalescer sends packets through c in batches, to a device, and back, and compares
// it with one that tries Follow first, and packs.
func checkCoalescer(t testing.TB, c *Coalescer, in [][]byte) {
	t.Helper()
	orig := make([][]byte, len(in))
	for i := range in {
		orig[i] = slices.Clone(in[i])
	}
	var out, plain [][]byte
	following := NewCoalescer(cap(c.runs), c.tcp, c.udp)
	received := adjoining(in)
	flush := func() {
		got, sizes := delivered(t, c)
		if same, runs := delivered(t, following); !slices.EqualFunc(got, same, bytes.Equal) || !slices.Equal(sizes, runs) {
			t.Fatalf("with Follow runs of %v packets, without it %v", runs, sizes)
		}
		if same, runs := packed(t, following); !slices.EqualFunc(got, same, bytes.Equal) || !slices.Equal(sizes, runs) {
			t.Fatalf("packed runs of %v packets, else %v", runs, sizes)
		}
		following.Reset()
		out = append(out, got...)
		for i := range c.Runs() {
			plain = c.Packets(&c.Runs()[i], plain)
		}
		c.Reset()
	}
	for i, b := range in {
		if c.Full() {
			flush()
		}
		add(t, c, b)
		if !following.Follow(received[i]) {
			add(t, following, received[i])
		}
	}
	flush()
	if !slices.EqualFunc(in, orig, bytes.Equal) {
		t.Fatal("a packet was written to")
	}
	sameFlowOrder(t, in, out)
	sameFlowOrder(t, in, plain)
}

func TestRandomTrafficIsDeliveredInOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		script := make([]byte, 3*r.IntN(300))
		for i := range script {
			script[i] = byte(r.Uint32())
			if i%3 == 1 && r.IntN(4) > 0 {
				script[i] = 0xff // mostly nothing special
			} else if i%3 == 1 {
				script[i] %= 32
			}
		}
		checkCoalescer(t, NewCoalescer(1+r.IntN(128), true, true), traffic(script))
	}
}

func FuzzCoalesce(f *testing.F) {
	plain := []byte{0, 255, 0}
	f.Add(uint8(64), bytes.Repeat(plain, 50))
	for special := range byte(32) {
		for flow := range byte(4) {
			f.Add(uint8(8), []byte{flow, 255, 0, flow, special, 0, flow, 255, 0, flow, 255, 0})
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, script []byte) {
		checkCoalescer(t, NewCoalescer(1+int(n), true, true), traffic(script))
	})
}

// A super-packet that is cut, carried and joined again is the same.
func FuzzSplitThenCoalesce(f *testing.F) {
	for kind := range uint8(8) {
		f.Add(kind, uint16(20_000), uint16(1448), uint32(0xfffffff0), uint16(0xfffe), uint8(0x02), uint8(tcpPSH))
		f.Add(kind, uint16(2896), uint16(1448), uint32(0), uint16(0), uint8(0xff), uint8(0))
	}
	f.Fuzz(func(t *testing.T, kind uint8, n, size uint16, seq uint32, id uint16, tos, flags uint8) {
		p := tcp4(0)
		limit := maxRunSegments
		if kind&1 != 0 {
			p.proto, limit = protoUDP, maxUDPSegments
		}
		if kind&4 != 0 {
			p.tcpOpts = timestamps
		}
		p.v6 = kind&2 != 0
		p.seq, p.id, p.tos, p.flags = seq, id, tos, tcpACK|uint16(flags)&(tcpPSH|0x40)
		p.payload = pattern(int(min(n, MaxPacket-72)))
		if size == 0 || len(p.payload) == 0 || len(p.payload) > int(size)*limit {
			return
		}
		pkt, super := p.super(int(size))
		segs, err := split(slices.Clone(pkt), super)
		if err != nil {
			t.Fatal(err)
		}
		if len(segs) == 1 {
			pkt, super = p.bytes(), Super{} // one packet stays one
		}
		co := NewCoalescer(len(segs), true, true)
		add(t, co, segs...)
		runs := co.Runs()
		if len(runs) != 1 || runs[0].Super != super || !bytes.Equal(slices.Concat(co.Vectors(&runs[0], nil)...), pkt) {
			t.Fatalf("%+v, %d segments, becomes %d runs, the first %+v", super, len(segs), len(runs), runs[0].Super)
		}
	})
}
