package keep

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestFiveThousandRoutes: of a node of the largest clusters. Times are logged.
func TestFiveThousandRoutes(t *testing.T) {
	const peers = 5000
	f := family{name: "IPv6", number: netlink.FAMILY_V6, network: families[1].network, gateway: families[1].gateway, metric: 1024}
	inside(t, func(n *node) {
		took := func(what string, f func()) {
			n.Helper()
			begin := time.Now()
			f()
			n.Logf("%s: %v", what, time.Since(begin))
		}
		count := func() int { return len(n.routes()) }
		var direct, tunnelled []Route
		for i := range peers {
			direct, tunnelled = append(direct, n.direct(f, i+2)), append(tunnelled, n.tunnelled(f, i+2))
		}
		table := n.begin(n.config())
		took("set", func() { n.must(table.Set(direct)) })
		took("moved into the tunnel", func() { n.must(table.Set(tunnelled)) })
		took("moved out of it", func() { n.must(table.Set(direct)) })
		n.must(table.Close())
		m := n.monitor()
		took("opened after a restart", func() { table = n.open(n.config()) })
		took("nothing to do, all is read", func() { n.must(table.Set(direct)) })
		n.run(table)
		took("nothing to do, Run runs", func() { n.must(table.Set(direct)) })
		if changes := m.seen(); len(changes) != 0 || count() != peers {
			n.Errorf("%d changes, %d routes", len(changes), count())
		}
		took("one changed", func() { n.must(table.Set(append(direct[1:], tunnelled[0]))) })
		n.must(netlink.LinkSetDown(n.eth0))
		took("all back after the device was down", func() {
			n.must(netlink.LinkSetUp(n.eth0), netlink.AddrReplace(n.eth0, address("2001:db8::1/64")))
			n.eventually("all are back", func() bool { return count() == peers })
		})
		took("removed", func() { n.must(table.Set(nil)) })
		if count() != 0 {
			n.Errorf("%d routes are left", count())
		}
	})
}
