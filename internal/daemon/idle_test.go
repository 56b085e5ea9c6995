package daemon

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// vxlanPlane is a data plane with a VXLAN device and one peer, 192.0.2.2.
type vxlanPlane struct{ countingPlane }

func (*vxlanPlane) Status() status.Dataplane {
	return status.Dataplane{
		Devices: []status.Device{{Name: "flannel.1", Kind: status.KindVXLAN}},
		Peers:   []status.Peer{{PublicIP: netip.MustParseAddr("192.0.2.2"), Backend: status.KindVXLAN}},
	}
}

// The session may run in a network namespace of its own, while those who ask for the
// status are answered by other goroutines.
func TestForwardingEntriesAreThoseOfTheDataPlanesNamespace(t *testing.T) {
	ns := netlabtest.Namespace(t, "node")
	mac, _ := net.ParseMAC("02:00:00:00:00:02")
	peer := netip.MustParseAddr("192.0.2.2")
	nl := ns.Netlink()
	if err := func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Flags = "flannel.1", net.FlagUp
		if err := nl.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, VxlanId: 1, Port: 8472, SrcAddr: net.IPv4(127, 0, 0, 1)}); err != nil {
			return err
		}
		link, err := nl.LinkByName("flannel.1")
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		lo, err := nl.LinkByName("lo")
		if err != nil {
			return err
		}
		return errors.Join(
			nl.LinkSetUp(link),
			nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("10.5.1.0/24"))}),
			nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(peer, 32)), LinkIndex: lo.Attrs().Index}),
			nl.NeighSet(&netlink.Neigh{LinkIndex: index, State: unix.NUD_PERMANENT, IP: net.IPv4(10, 5, 1, 2), HardwareAddr: mac}),
			nl.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_PERMANENT, Flags: unix.NTF_SELF, IP: peer.AsSlice(), HardwareAddr: mac}),
		)
	}(); err != nil {
		t.Fatal(err)
	}
	s := newState("", "")
	var dp vxlanPlane
	testkit.Must(t, ns.Do(func() error { s.publish(status.Document{}, &dp, nil); return nil }))
	defer s.publish(status.Document{}, nil, nil)
	c, err := ns.Dial(t.Context(), "udp", "10.5.1.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The kernel counts in ticks: the packet has to come later than the entry.
	testkit.Eventually(t, "it is known when a packet went to the peer", func() bool {
		_, err := c.Write([]byte("x"))
		testkit.Must(t, err)
		return s.document().Dataplane.Peers[0].Idle != nil
	})
}
