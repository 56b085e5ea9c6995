//go:build !noetcd

package etcd

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/twillnet/twill/lease"
)

// firstFree is the number of free subnets from which flannel chooses one at
// random.
const firstFree = 100

// choose returns free subnets: the previous ones, or else random ones among the
// first that are free. It fails if a family has none.
func choose(c *lease.Config, taken []netip.Prefix, prev lease.Previous, among int) (l lease.Lease, err error) {
	for _, f := range []struct {
		lease.Range
		prev netip.Prefix
		to   *netip.Prefix
	}{
		{c.IPv4, prev.Subnet, &l.Subnet},
		{c.IPv6, prev.IPv6Subnet, &l.IPv6Subnet},
	} {
		if !f.Enabled() {
			continue
		}
		used := newUsed(f.Range, taken)
		if f.prev.IsValid() && f.Range.HandsOut(f.prev) && !used.overlaps(f.prev) {
			*f.to = f.prev
			continue
		}
		free := used.free(among)
		if len(free) == 0 {
			return lease.Lease{}, fmt.Errorf("%w: all /%d subnets from %s to %s are taken", lease.ErrNoLease, f.SubnetLen, f.SubnetMin, f.SubnetMax)
		}
		*f.to = free[rand.IntN(len(free))]
	}
	return l, nil
}

// used records which subnets of a range are taken.
type used struct {
	lease.Range
	// exact holds subnets of the range's length that are taken in whole or in part.
	// wide holds larger ones, from before SubnetLen was changed, or written by hand.
	exact map[netip.Prefix]bool
	wide  []netip.Prefix
}

func newUsed(r lease.Range, taken []netip.Prefix) *used {
	u := &used{Range: r, exact: make(map[netip.Prefix]bool)}
	for _, p := range taken {
		switch {
		case p.Addr().BitLen() != r.Network.Addr().BitLen():
		case p.Bits() < r.SubnetLen:
			u.wide = append(u.wide, p)
		default:
			u.exact[netip.PrefixFrom(p.Addr(), r.SubnetLen).Masked()] = true
		}
	}
	return u
}

// overlaps reports whether any of p, which has the range's length, is taken.
func (u *used) overlaps(p netip.Prefix) bool {
	_, wide := u.within(p)
	return wide || u.exact[p]
}

func (u *used) within(p netip.Prefix) (netip.Prefix, bool) {
	for _, w := range u.wide {
		if w.Overlaps(p) {
			return w, true
		}
	}
	return netip.Prefix{}, false
}

// free returns the first free subnets of the range, at most most.
func (u *used) free(most int) []netip.Prefix {
	var free []netip.Prefix
	p := netip.PrefixFrom(u.SubnetMin, u.SubnetLen)
	for ok := true; ok && len(free) < most && !u.SubnetMax.Less(p.Addr()); {
		past := p
		if w, wide := u.within(p); wide {
			past = w
		} else if !u.exact[p] {
			free = append(free, p)
		}
		var next netip.Addr
		next, ok = after(past)
		p = netip.PrefixFrom(next, u.SubnetLen)
	}
	return free
}

// after returns the address that follows the last of p, if there is one.
func after(p netip.Prefix) (netip.Addr, bool) {
	b := p.Masked().Addr().AsSlice()
	for i, add := (p.Bits()-1)/8, byte(0x80>>((p.Bits()-1)%8)); i >= 0; i, add = i-1, 1 {
		b[i] += add
		if b[i] >= add {
			a, _ := netip.AddrFromSlice(b)
			return a, true
		}
	}
	return netip.Addr{}, false
}
