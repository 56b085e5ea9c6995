package encap

// Pack joins the payloads of packets of r that are adjacent in memory by moving them over
// the headers between them, so that Vectors returns a few long pieces. The kernel copies
// these faster than one piece per packet, by more than the move costs. The packets of a
// received train are adjacent: the capacity of each reaches beyond its end, into the next.
//
// Pack is called after Runs. It overwrites headers of packets, so Packets must not be called
// for r afterwards.
func (c *Coalescer) Pack(r *Run) {
	if r.head < 0 {
		return
	}
	piece := &r.first // the payloads that follow become part of it
	end, tail := r.first, int32(-1)
	for i := r.head; i >= 0; i = c.parts[i].next {
		pkt := c.parts[i].pkt
		if !adjoins(end, pkt) {
			c.link(r, tail, i)
			piece, tail = &c.parts[i].pkt, i
		} else {
			at := len(*piece)
			*piece = (*piece)[:at+len(pkt)-r.headerLen]
			copy((*piece)[at:], pkt[r.headerLen:])
		}
		end = pkt
	}
	c.link(r, tail, -1)
}

// link makes part i follow part tail of r, or its first packet if tail is -1.
func (c *Coalescer) link(r *Run, tail, i int32) {
	if tail < 0 {
		r.head = i
	} else {
		c.parts[tail].next = i
	}
}

// adjoins reports whether b begins where a ends, in the same memory.
func adjoins(a, b []byte) bool {
	return len(a) < cap(a) && &a[:len(a)+1][len(a)] == &b[0]
}
