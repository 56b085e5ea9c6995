package doctor

import (
	"context"
	"net/netip"
	"slices"

	"github.com/twillnet/twill/internal/echo"
)

// reach records which addresses answer pings: on the underlay, on the underlay with
// packets as large as those that carry a full-size pod packet, and through the
// tunnel.
type reach struct {
	full                 []echo.Ping // the pings of large, one for each address
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
	var small, tunnel []echo.Ping
	for _, p := range x.paths() {
		size := p.outerSize(inner)
		if i := slices.IndexFunc(r.full, func(f echo.Ping) bool { return f.To == p.public }); i >= 0 {
			r.full[i].Size = max(r.full[i].Size, size)
		} else {
			r.full = append(r.full, echo.Ping{To: p.public, Size: size})
			small = append(small, echo.Ping{To: p.public, Size: echo.Smallest})
		}
		if r.tunnel && p.tunnelled() {
			tunnel = append(tunnel, echo.Ping{To: p.subnet.Addr(), Size: echo.Smallest})
		}
	}
	var err error
	if r.near, err = echo.Answers(ctx, small); err != nil {
		return nil, err
	}
	silent := func(p echo.Ping) bool { return !r.near[p.To] }
	if r.large, err = echo.Answers(ctx, slices.DeleteFunc(slices.Clone(r.full), silent)); err != nil {
		return nil, err
	}
	if r.through, err = echo.Answers(ctx, tunnel); err != nil {
		return nil, err
	}
	return r, nil
}

// narrow returns the pings of which only smaller ones were answered.
func (r *reach) narrow() []echo.Ping {
	return slices.DeleteFunc(slices.Clone(r.full), func(p echo.Ping) bool { return !r.near[p.To] || r.large[p.To] })
}

// sizeTo returns the size in bytes of the largest packet sent to an address.
func (r *reach) sizeTo(a netip.Addr) int {
	for _, p := range r.full {
		if p.To == a {
			return p.Size
		}
	}
	return 0
}
