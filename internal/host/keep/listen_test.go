package keep

import (
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/nlwatch"
)

// TestOnlyNotificationsAboutTheStateAreFollowed: after each notification that does, whole
// tables are read.
func TestOnlyNotificationsAboutTheStateAreFollowed(t *testing.T) {
	inside(t, func(n *node) {
		n.must(netlink.LinkDel(n.vtep))
		c := cluster(5)
		k, err := Open(c.config(""))
		n.must(err, k.Ensure(c.state(n).Links...))
		defer k.Close()
		flannel1, err := netlink.LinkByName("flannel.1")
		n.must(err)
		events, err := nlwatch.Open(unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE)
		n.must(err)
		defer events.Close()
		up := make(map[int]bool)
		heard := func() (all kinds) {
			for {
				messages, _ := events.Next(time.Now())
				if len(messages) == 0 {
					return all
				}
				for _, m := range messages {
					k.mu.Lock()
					concerned, _, err := k.concerned(up, m)
					k.mu.Unlock()
					n.must(err)
					all |= concerned
				}
			}
		}
		entry := func(mac byte, dst string, state int) *netlink.Neigh {
			return &netlink.Neigh{LinkIndex: flannel1.Attrs().Index, Family: unix.AF_BRIDGE, State: state, Flags: netlink.NTF_SELF,
				IP: net.ParseIP(dst), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, mac}}
		}
		neighbour := func(ip string, mac byte) *netlink.Neigh {
			return &netlink.Neigh{LinkIndex: flannel1.Attrs().Index, State: unix.NUD_PERMANENT, IP: net.ParseIP(ip), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, mac}}
		}
		plain := Route{Dst: c.subnet(3), Via: netip.MustParseAddr("192.0.2.3"), Dev: "eth0"}
		heard()                         // of the devices
		up[n.eth0.Attrs().Index] = true // the kernel may announce its carrier later
		for _, tt := range []struct {
			what   string
			change func() error
			want   kinds
		}{
			{"all that Set writes", func() error { k.Set(c.state(n)); return nil }, 0},
			{"an FDB entry of another program", func() error { return netlink.NeighSet(entry(9, "192.0.2.9", unix.NUD_PERMANENT)) }, 0},
			{"a neighbour of another program", func() error { return netlink.NeighSet(neighbour("10.5.9.0", 9)) }, 0},
			{"a route of another program", func() error {
				return netlink.RouteAdd(Route{Dst: c.subnet(9), Via: plain.Via, Dev: "eth0"}.stock())
			}, 0},
			{"an FDB entry that is changed", func() error { return netlink.NeighSet(entry(2, "192.0.2.9", unix.NUD_PERMANENT)) }, entries},
			{"an FDB entry that is not permanent", func() error { return netlink.NeighSet(entry(2, "192.0.2.2", unix.NUD_REACHABLE)) }, entries},
			{"an FDB entry that is gone", func() error { return netlink.NeighDel(entry(2, "192.0.2.2", 0)) }, entries},
			{"a neighbour that is changed", func() error { return netlink.NeighSet(neighbour("10.5.2.0", 9)) }, entries},
			{"a neighbour that is gone", func() error { return netlink.NeighDel(neighbour("10.5.2.0", 9)) }, entries},
			{"a route that is gone", func() error { return netlink.RouteDel(plain.stock()) }, routes},
			{"a blackhole that is gone", func() error {
				return netlink.RouteDel(&netlink.Route{Dst: ipNet(c.subnet(1)), Type: unix.RTN_BLACKHOLE, Priority: lastMetric})
			}, routes},
			{"a property of the device", func() error { return netlink.LinkSetAlias(flannel1, "other") }, everything}, // its state was not known
			{"another property of it", func() error { return netlink.LinkSetAlias(flannel1, "another") }, links},
			{"an address of the underlay", func() error { return netlink.AddrAdd(n.eth0, address("198.51.100.1/24")) }, routes},
		} {
			n.must(tt.change())
			if got := heard(); got != tt.want {
				t.Errorf("%s: %b, want %b", tt.what, got, tt.want)
			}
		}
		if _, _, err := k.concerned(up, syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.RTM_DELLINK}, Data: linkMessage(flannel1)}); err == nil {
			t.Error("no error although the device is gone")
		}
	})
}

// linkMessage is struct ifinfomsg of a link.
func linkMessage(l netlink.Link) []byte {
	return (&nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Index: int32(l.Attrs().Index)}}).Serialize()
}

func TestTruncatedMessagesAreIgnored(t *testing.T) {
	inside(t, func(n *node) {
		c := cluster(5)
		k, err := Open(c.config(""))
		n.must(err)
		defer k.Close()
		k.Set(State{})
		for _, kind := range []uint16{unix.RTM_NEWLINK, unix.RTM_DELLINK, unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH, unix.RTM_NEWROUTE, unix.RTM_DELROUTE, 0} {
			for size := range 12 {
				concerned, _, err := k.concerned(nil, syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind}, Data: make([]byte, size)})
				if size < 8 && concerned != 0 || err != nil {
					t.Errorf("type %d, %d bytes: %b, %v", kind, size, concerned, err)
				}
			}
		}
	})
}

// TestWhatIsRemovedRepeatedlyIsLeftAloneLonger, up to a bound, and at once again
// after a calm.
func TestWhatIsRemovedRepeatedlyIsLeftAloneLonger(t *testing.T) {
	k := &Keeper{paces: make(map[any]*pace)}
	var rests []time.Duration
	for range 9 {
		k.put("it")
		rests = append(rests, k.paces["it"].rest)
	}
	for i, r := range rests {
		if want := min(firstRest<<i, longestRest); r != want {
			t.Errorf("rest %d: %v, want %v", i, r, want)
		}
	}
	if k.resting("it").IsZero() || !k.resting("another").IsZero() {
		t.Error("not the one rests that was taken")
	}
	k.paces["it"].last = time.Now().Add(-2 * calm)
	if k.put("it"); k.paces["it"].rest != firstRest {
		t.Errorf("after a calm: %v", k.paces["it"].rest)
	}
}
