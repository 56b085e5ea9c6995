package doctor

import (
	"context"
	"net/netip"
	"slices"
)

// smallest is the size of a packet that every path takes, bytes.
const smallest = 64

// reach is who answers pings: at the address on the underlay, there with packets as
// large as those that carry a full one of a pod, and through the tunnel.
type reach struct {
	full                 []ping // what large was asked for, one for each address
	near, large, through map[netip.Addr]bool
	tunnel               bool // peers were asked through the tunnel
}

// answered says whether packets of a path come through: those of the tunnel, if
// it has one and was asked.
func (r *reach) answered(p path) bool {
	if r.tunnel && p.tunnelled() {
		return r.through[p.subnet.Addr()]
	}
	return r.near[p.public]
}

// reach pings the far end of each path. It asks once; later calls have the same
// answer.
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

// narrow are the pings that only smaller ones of were answered.
func (r *reach) narrow() []ping {
	return slices.DeleteFunc(slices.Clone(r.full), func(p ping) bool { return !r.near[p.to] || r.large[p.to] })
}

// sizeTo is how large a packet an address was asked for, bytes.
func (r *reach) sizeTo(a netip.Addr) int {
	for _, p := range r.full {
		if p.to == a {
			return p.size
		}
	}
	return 0
}
