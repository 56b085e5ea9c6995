package nlbatch

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peers is how many a node of the largest clusters has. Each is a neighbour, an
// FDB entry and a route.
const peers = 5000

func (d devices) peers() []Request {
	var reqs []Request
	for i := range peers {
		reqs = append(reqs, d.peer4(i).replace()...)
	}
	return reqs
}

func TestFiveThousandPeersAreProgrammed(t *testing.T) {
	inside(t, func(d devices) {
		begin := time.Now()
		for i := range peers {
			if err := d.peer4(i).stock(); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%d peers one by one: %v", peers, time.Since(begin))
	})
	inside(t, func(d devices) {
		c := dial(t)
		reqs := d.peers()
		for _, what := range []string{"first", "again"} {
			begin := time.Now()
			all(t, c, reqs)
			t.Logf("%d peers in batches, %s: %v", peers, what, time.Since(begin))
		}
		begin := time.Now()
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{LinkIndex: d.v4}, netlink.RT_FILTER_OIF)
		if err != nil {
			t.Fatal(err)
		}
		neighs := neighbours(t, d.v4)
		fdb, err := netlink.NeighList(d.v4, unix.AF_BRIDGE)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("dump of all: %v", time.Since(begin))
		if len(routes) != peers || len(neighs) != peers || len(fdb) != peers {
			t.Errorf("%d routes, %d neighbours, %d FDB entries, want %d each", len(routes), len(neighs), len(fdb), peers)
		}
	})
}

// BenchmarkPeers is a hundred peers: a neighbour, an FDB entry and a route each.
func BenchmarkPeers(b *testing.B) {
	const hundred = 100
	b.Run("one by one", func(b *testing.B) {
		inside(b, func(d devices) {
			for b.Loop() {
				for i := range hundred {
					if err := d.peer4(i).stock(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	})
	b.Run("in batches", func(b *testing.B) {
		inside(b, func(d devices) {
			c := dial(b)
			for b.Loop() {
				var reqs []Request
				for i := range hundred {
					reqs = append(reqs, d.peer4(i).replace()...)
				}
				all(b, c, reqs)
			}
		})
	})
}
