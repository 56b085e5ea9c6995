package encap

import (
	"bytes"
	"slices"
	"testing"
)

// train returns n packets that follow each other as p does.
func (p packet) train(n int) []packet {
	var out []packet
	for range n {
		out = append(out, p)
		p = p.next()
	}
	return out
}

// next returns the packet of the same kind and size that follows p.
func (p packet) next() packet {
	p.seq += uint32(len(p.payload))
	p.id++
	return p
}

// add takes packets into the batch of c.
func add(t testing.TB, c *Coalescer, pkts ...[]byte) {
	t.Helper()
	for _, b := range pkts {
		var h Header
		if c.Full() || !Parse(b, &h) {
			t.Fatalf("full %v, or malformed: % x", c.Full(), b[:min(len(b), 60)])
		}
		c.Add(b, &h)
	}
}

// delivered returns what the kernel makes of the batch of c, and the number of
// packets in each run.
func delivered(t testing.TB, c *Coalescer) (pkts [][]byte, sizes []int) {
	t.Helper()
	return accepted(t, c, c.Runs())
}

// packed is the same with the runs packed.
func packed(t testing.TB, c *Coalescer) (pkts [][]byte, sizes []int) {
	t.Helper()
	runs := c.Runs()
	for i := range runs {
		c.Pack(&runs[i])
	}
	return accepted(t, c, runs)
}

func accepted(t testing.TB, c *Coalescer, runs []Run) (pkts [][]byte, sizes []int) {
	t.Helper()
	for i, r := range runs {
		out, err := refDevice(slices.Concat(c.Vectors(&r, nil)...), r.Super)
		if err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		total := 0
		for _, b := range out {
			total += len(b)
		}
		if len(out) != r.Segments || r.Bytes() != total || r.IPv6() != (out[0][0]>>4 == 6) {
			t.Errorf("run %d has %d packets, %d bytes, IPv6 %v; holds %d, %d",
				i, r.Segments, r.Bytes(), r.IPv6(), len(out), total)
		}
		pkts, sizes = append(pkts, out...), append(sizes, r.Segments)
	}
	return pkts, sizes
}

var (
	tcpFlows  = []packet{tcp4(104), tcp6(104)}
	udpFlows  = []packet{udp4(104), udp6(104)}
	ipv4Flows = []packet{tcp4(104), udp4(104)}
	ipv6Flows = []packet{tcp6(104), udp6(104)}
	flows     = slices.Concat(tcpFlows, udpFlows)
)

// The second packet of three is special. The third comes twice: as the
// successor of the second, and as that of the first, so that merging them
// would let it overtake the second.
func TestNeverMergesAcross(t *testing.T) {
	apart := []int{1, 1, 1}
	for name, c := range map[string]struct {
		of     []packet
		change func(*packet)
		want   []int // packets in each run
	}{
		"nothing":                  {flows, func(*packet) {}, []int{3}},
		"DSCP":                     {flows, func(p *packet) { p.tos = 0x08 }, apart},
		"DSCP's high bits":         {flows, func(p *packet) { p.tos = 0xa0 }, apart},
		"ECN":                      {flows, func(p *packet) { p.tos = ecnCE }, apart},
		"TTL":                      {flows, func(p *packet) { p.ttl-- }, apart},
		"flow label":               {ipv6Flows, func(p *packet) { p.label = 1 }, apart},
		"DF":                       {ipv4Flows, func(p *packet) { p.frag = 0 }, apart},
		"the reserved bit":         {ipv4Flows, func(p *packet) { p.frag |= 0x8000 }, apart},
		"a first fragment":         {ipv4Flows, func(p *packet) { p.frag = 0x2000 }, apart},
		"a later fragment":         {ipv4Flows, func(p *packet) { p.frag = 0x2001 }, apart},
		"an IPv6 fragment":         {ipv6Flows, fragment6, apart},
		"IPv4 options":             {ipv4Flows, func(p *packet) { p.ipOpts = []byte{1, 1, 1, 0} }, apart},
		"IPv6 extensions":          {ipv6Flows, func(p *packet) { p.ext = []extHeader{destOpts16} }, apart},
		"TCP options":              {tcpFlows, func(p *packet) { p.tcpOpts = timestamps }, apart},
		"window":                   {tcpFlows, func(p *packet) { p.window++ }, apart},
		"acknowledgement":          {tcpFlows, func(p *packet) { p.ack++ }, apart},
		"urgent pointer":           {tcpFlows, func(p *packet) { p.urgent = 1 }, apart},
		"a gap":                    {tcpFlows, func(p *packet) { p.seq++ }, []int{1, 2}},
		"an overlap":               {tcpFlows, func(p *packet) { p.seq-- }, []int{1, 2}},
		"a retransmission":         {tcpFlows, func(p *packet) { p.seq = 1000 }, []int{1, 2}},
		"a pure ACK":               {tcpFlows, func(p *packet) { p.payload = nil }, apart},
		"FIN":                      {tcpFlows, func(p *packet) { p.flags |= tcpFIN }, apart},
		"SYN":                      {tcpFlows, func(p *packet) { p.flags |= tcpSYN }, apart},
		"RST":                      {tcpFlows, func(p *packet) { p.flags |= tcpRST }, apart},
		"URG":                      {tcpFlows, func(p *packet) { p.flags |= tcpURG }, apart},
		"ECE":                      {tcpFlows, func(p *packet) { p.flags |= 0x40 }, apart},
		"CWR":                      {tcpFlows, func(p *packet) { p.flags |= tcpCWR }, apart},
		"AE":                       {tcpFlows, func(p *packet) { p.flags |= 0x100 }, apart},
		"no ACK":                   {tcpFlows, func(p *packet) { p.flags = 0 }, apart},
		"PSH, which ends a run":    {tcpFlows, func(p *packet) { p.flags |= tcpPSH }, []int{2, 1}},
		"less, which ends a run":   {flows, func(p *packet) { p.payload = p.payload[:103] }, []int{2, 1}},
		"more, which begins a run": {flows, func(p *packet) { p.payload = pattern(105) }, []int{1, 2}},
		"an empty datagram":        {udpFlows, func(p *packet) { p.payload = nil }, apart},
		"no UDP checksum":          {udpFlows, func(p *packet) { p.noChecksum = true }, apart},
	} {
		for _, p := range c.of {
			first, second := p, p.next()
			c.change(&second)
			for i, before := range []packet{second, first} {
				third := p.next().next()
				third.seq = before.next().seq
				in := [][]byte{first.bytes(), second.bytes(), third.bytes()}
				co := NewCoalescer(3, true, true)
				add(t, co, in...)
				out, sizes := delivered(t, co)
				if i == 0 && !slices.Equal(sizes, c.want) {
					t.Errorf("%s, protocol %d, IPv6 %v: runs of %v, want %v", name, p.proto, p.v6, sizes, c.want)
				}
				if !slices.EqualFunc(in, out, bytes.Equal) {
					t.Errorf("%s, protocol %d, IPv6 %v: overtaken or changed", name, p.proto, p.v6)
				}
			}
		}
	}
}

// What the packets of a run must or must not have in common all along.
func TestNeverMerges(t *testing.T) {
	for name, c := range map[string]struct {
		of     []packet
		change func(i int, p *packet)
	}{
		"IDs with gaps unless DF":      {ipv4Flows, func(i int, p *packet) { p.frag = 0; p.id += uint16(i) }},
		"one ID for all unless DF":     {ipv4Flows, func(_ int, p *packet) { p.frag = 0; p.id = 7 }},
		"TCP timestamps that advance":  {tcpFlows, func(i int, p *packet) { p.tcpOpts = set8(timestamps, 7, byte(i)) }},
		"CWR, kept by one packet only": {tcpFlows, func(_ int, p *packet) { p.flags |= tcpCWR }},
		"FIN on each":                  {tcpFlows, func(_ int, p *packet) { p.flags |= tcpFIN }},
		"SYN on each":                  {tcpFlows, func(_ int, p *packet) { p.flags |= tcpSYN }},
		"RST on each":                  {tcpFlows, func(_ int, p *packet) { p.flags |= tcpRST }},
		"URG on each":                  {tcpFlows, func(_ int, p *packet) { p.flags |= tcpURG }},
		"ACK on none":                  {tcpFlows, func(_ int, p *packet) { p.flags = 0 }},
		"first fragments":              {ipv4Flows, func(_ int, p *packet) { p.frag = 0x2000 }},
		"later fragments":              {ipv4Flows, func(_ int, p *packet) { p.frag = 0x0001 }},
		"PSH on each":                  {tcpFlows, func(_ int, p *packet) { p.flags |= tcpPSH }},
		"UDP without checksums":        {udpFlows, func(_ int, p *packet) { p.noChecksum = true }},
		"IPv4 options":                 {ipv4Flows, func(_ int, p *packet) { p.ipOpts = []byte{1, 1, 1, 0} }},
		"IPv6 extensions":              {ipv6Flows, func(_ int, p *packet) { p.ext = []extHeader{hopByHop} }},
		"source addresses":             {flows, func(i int, p *packet) { p.src += uint8(i) }},
		"destination addresses":        {flows, func(i int, p *packet) { p.dst += uint8(i) }},
		"source ports":                 {flows, func(i int, p *packet) { p.sport += uint16(i) }},
		"destination ports":            {flows, func(i int, p *packet) { p.dport += uint16(i) }},
		"other protocols":              {flows, func(_ int, p *packet) { p.proto = 132 }}, // SCTP
	} {
		for _, p := range c.of {
			co := NewCoalescer(4, true, true)
			var in [][]byte
			for i, p := range p.train(4) {
				c.change(i, &p)
				in = append(in, p.bytes())
			}
			add(t, co, in...)
			if out, sizes := delivered(t, co); len(sizes) != 4 || !slices.EqualFunc(in, out, bytes.Equal) {
				t.Errorf("%s, protocol %d, IPv6 %v: runs of %v", name, p.proto, p.v6, sizes)
			}
		}
	}
}

// A damaged packet reaches the receiver as damaged as it arrived.
func TestNeverLaundersDamage(t *testing.T) {
	for name, c := range map[string]struct {
		of        []packet
		which, at int // at counts from the end if negative
		want      []int
	}{
		"payload of the first":    {flows, 0, -1, []int{1, 3}},
		"payload of the second":   {flows, 1, -1, []int{1, 1, 2}},
		"payload of the last":     {flows, 3, -1, []int{3, 1}},
		"IPv4 header of one":      {ipv4Flows, 2, ipv4Checksum, []int{2, 1, 1}},
		"IPv4 header of the last": {ipv4Flows, 3, ipv4ID, []int{3, 1}},
		"TCP checksum":            {tcpFlows, 1, -104 - 4, []int{1, 1, 2}},
		"UDP checksum":            {udpFlows, 1, -104 - 1, []int{1, 1, 2}},
		"UDP length":              {udpFlows, 1, -104 - 3, []int{1, 1, 2}},
	} {
		for _, p := range c.of {
			co := NewCoalescer(4, true, true)
			var in [][]byte
			for _, p := range p.train(4) {
				in = append(in, p.bytes())
			}
			b := in[c.which]
			b[(c.at+len(b))%len(b)] ^= 1
			add(t, co, in...)
			out, sizes := delivered(t, co)
			if !slices.Equal(sizes, c.want) || !slices.EqualFunc(in, out, bytes.Equal) {
				t.Errorf("%s, protocol %d, IPv6 %v: runs of %v, want %v", name, p.proto, p.v6, sizes, c.want)
			}
		}
	}
}

// What a datagram holds behind the length in its UDP header would be
// taken for data.
func TestNeverMergesDatagramsWithATail(t *testing.T) {
	for _, p := range udpFlows {
		co := NewCoalescer(2, true, true)
		for range 2 {
			b := p.bytes()
			at := len(b) - len(p.payload) - udpHeaderLen
			b = set16(b, at+udpLength, udpHeaderLen+50)
			refChecksums(b, at, protoUDP)
			add(t, co, b)
		}
		if n := len(co.Runs()); n != 2 {
			t.Errorf("IPv6 %v: %d runs", p.v6, n)
		}
	}
}
