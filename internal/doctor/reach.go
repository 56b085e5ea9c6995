package doctor

import (
	"context"
	"net/netip"
	"slices"
)

// smallest is the size in bytes of a packet that fits every path.
const smallest = 64

// reach records which addresses answer pings: on the underlay, on the underlay with
// packets as large as those that carry a full-size pod packet, and through the
// tunnel.
type reach struct {
	full                 []ping // the pings of large, one for each address
	near, large, through map[netip.Addr]bool
	tunnel               bool // peers were pinged through the tunnel
}

// answered reports whether packets pass on a path: through the tunnel, if it
// has one that was pinged.
func (r *reach) answered(p path) bool {
	if r.tunnel && p.tunnelled() {
		return r.through[p.subnet.Addr()]
	}
	return r.near[p.public]
}

// reach pings the far end of each path. It does so once; later calls return the
// same result.
func (x *examination) reach(ctx context.Context) (*reach, error) {
	if x.reached == nil && x.reachErr == nil {
		x.reached, x.reachErr = x.ask(ctx)
	}
	return x.reached, x.reachErr
}

func (x *examination) ask(ctx context.Context) (*reach, error) {
	inner := x.Env.MTU
	dp := x.dataplane()
	if dp != nil && (inner == 0 || dp.MTU() < inner) {
		inner = dp.MTU()
	}
	r := &reach{tunnel: dp != nil}
	var small, tunnel []ping
	for _, p := range x.paths() {
		size := p.outerSize(inner)
		if i := slices.IndexFunc(r.full, func(f ping) bool { return f.to == p.public }); i >= 0 {
			r.full[i].size = max(r.full[i].size, size)
		} else {
			r.full = append(r.full, ping{p.public, size})
			small = append(small, ping{p.public, smallest})
		}
		if r.tunnel && p.tunnelled() {
			tunnel = append(tunnel, ping{p.subnet.Addr(), smallest})
		}
	}
	var err error
	if r.near, err = answers(ctx, small); err != nil {
		return nil, err
	}
	silent := func(p ping) bool { return !r.near[p.to] }
	if r.large, err = answers(ctx, slices.DeleteFunc(slices.Clone(r.full), silent)); err != nil {
		return nil, err
	}
	if r.through, err = answers(ctx, tunnel); err != nil {
		return nil, err
	}
	return r, nil
}

// narrow returns the pings of which only smaller ones were answered.
func (r *reach) narrow() []ping {
	return slices.DeleteFunc(slices.Clone(r.full), func(p ping) bool { return !r.near[p.to] || r.large[p.to] })
}

// sizeTo returns the size in bytes of the largest packet sent to an address.
func (r *reach) sizeTo(a netip.Addr) int {
	for _, p := range r.full {
		if p.to == a {
			return p.size
		}
	}
	return 0
}
