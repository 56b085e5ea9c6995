package vxlan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// state is all that Run looks after, as lines, and other addresses but for those
// of the link, one of which an IPv4 device gets with a new MTU.
func (h host) state(name string) []string {
	h.Helper()
	v := h.vxlan(name)
	addrs := slices.DeleteFunc(h.addrs(name), func(a string) bool { return strings.HasPrefix(a, "fe80:") })
	return append(append(h.table(name), addrs...),
		fmt.Sprint("MTU ", v.MTU), fmt.Sprint("MAC ", v.HardwareAddr), fmt.Sprint("learning ", v.Learning), fmt.Sprint("up ", v.Flags&net.FlagUp != 0), fmt.Sprint("bridge ", v.MasterIndex), fmt.Sprintf("flags %#x", v.RawFlags))
}

// taking removes one thing from a device with the peers 2 and 3.
type taking struct {
	name string
	take func(h host, d *kept, peer func(int) Peer) error
	log  string // says that it was put back
}

// tooLow is the name of a case.
const tooLow = "MTU, too low for IPv6"

func takings() []taking {
	link := func(d *kept) netlink.Link {
		return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.Index()}}
	}
	return []taking{
		{"address", func(h host, d *kept, _ func(int) Peer) error {
			list, err := h.nl.AddrList(link(d), netlink.FAMILY_ALL)
			h.must(err)
			return h.nl.AddrDel(link(d), &list[0])
		}, "address "},
		{"MTU, lower", func(h host, d *kept, _ func(int) Peer) error { return h.nl.LinkSetMTU(link(d), 1300) }, "MTU "},
		{tooLow, func(h host, d *kept, _ func(int) Peer) error { return h.nl.LinkSetMTU(link(d), 1000) }, "MTU "},
		{"MAC", func(h host, d *kept, _ func(int) Peer) error {
			return h.nl.LinkSetHardwareAddr(link(d), net.HardwareAddr{2, 9, 9, 9, 9, 9})
		}, "MAC "},
		{"up state", func(h host, d *kept, _ func(int) Peer) error { return h.nl.LinkSetDown(link(d)) }, "up"},
		{"name", func(h host, d *kept, _ func(int) Peer) error { return h.nl.LinkSetName(link(d), "other0") }, "name "},
		{"name, kept as another", func(h host, d *kept, _ func(int) Peer) error {
			was := d.Name()
			for {
				h.must(h.nl.LinkSetName(link(d), "other0"))
				// It exists if the device already has its name back.
				if err := h.nl.LinkAddAltName(link(d), was); !errors.Is(err, unix.EEXIST) {
					return err
				}
			}
		}, "name "},
		{"neighbour", func(h host, d *kept, peer func(int) Peer) error {
			return h.nl.NeighDel(neigh(d.Index(), peer(2).Subnet.Addr(), nil, 0))
		}, "neighbour "},
		{"neighbour, changed", func(h host, d *kept, peer func(int) Peer) error {
			return h.nl.NeighSet(neigh(d.Index(), peer(2).Subnet.Addr(), peer(3).MAC, netlink.NUD_PERMANENT))
		}, "neighbour "},
		{"neighbour, not permanent", func(h host, d *kept, peer func(int) Peer) error {
			return h.nl.NeighSet(neigh(d.Index(), peer(2).Subnet.Addr(), peer(2).MAC, netlink.NUD_STALE))
		}, "neighbour "},
		{"FDB entry", func(h host, d *kept, peer func(int) Peer) error {
			return h.nl.NeighDel(fdb(d.Index(), peer(2).MAC, peer(2).Endpoint))
		}, "FDB entry "},
		{"FDB entry, changed", func(h host, d *kept, peer func(int) Peer) error {
			return h.nl.NeighSet(fdb(d.Index(), peer(2).MAC, peer(9).Endpoint))
		}, "FDB entry "},
		{"FDB entry, not permanent", func(h host, d *kept, peer func(int) Peer) error {
			e := fdb(d.Index(), peer(2).MAC, peer(2).Endpoint)
			e.State = netlink.NUD_REACHABLE
			return h.nl.NeighSet(e)
		}, "FDB entry "},
		{"bridge", func(h host, d *kept, _ func(int) Peer) error {
			bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
			return errors.Join(h.nl.LinkAdd(bridge), h.nl.LinkSetMaster(link(d), bridge))
		}, "nomaster"},
		{"ARP", func(h host, d *kept, _ func(int) Peer) error { return h.nl.LinkSetARPOff(link(d)) }, "arp"},
		{"carrier", func(h host, d *kept, _ func(int) Peer) error {
			return h.ns.Command(context.Background(), "ip", "link", "set", d.Name(), "protodown", "on").Run()
		}, "carrier"},
		{"learning", func(h host, d *kept, _ func(int) Peer) error {
			return h.change(d, nl.NewRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(1)))
		}, "learning false"},
	}
}

// TestNameThatAnotherDeviceHasIsReportedAndTakenBackLater: the log says what to do, and the
// device gets its name once that is done.
func TestNameThatAnotherDeviceHasIsReportedAndTakenBackLater(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		out := new(testkit.Log)
		cfg.Logger = out.Logger()
		d := h.open(cfg)
		h.must(d.add(peer(2), peer(3)))
		want := h.state(d.Name())
		device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: d.Index()}}
		thief := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: d.Name()}}
		h.must(h.nl.LinkSetName(device, "other0"), h.nl.LinkAdd(thief))
		stop := h.run(d)
		defer stop()
		remedy := fmt.Sprintf("the device is now named other0, and interface %d has its old name: rename or delete that interface", thief.Attrs().Index)
		testkit.Eventually(h, "the log says what to do", func() bool { return strings.Contains(out.String(), remedy) })
		h.must(h.nl.LinkDel(thief))
		testkit.Eventually(h, "the device has its name", func() bool {
			l, err := h.nl.LinkByName(d.Name())
			return err == nil && l.Attrs().Index == d.Index()
		})
		testkit.Eventually(h, "the device is what it was", func() bool { return slices.Equal(h.state(d.Name()), want) })
	})
}

// TestWhatIsRemovedFromTheDeviceIsRestored: each case removes one thing, and the
// device is soon what it was, which the log says once.
func TestWhatIsRemovedFromTheDeviceIsRestored(t *testing.T) {
	for _, tt := range takings() {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
				out := new(testkit.Log)
				cfg.Logger = out.Logger()
				d := h.open(cfg)
				h.must(d.add(peer(2), peer(3)))
				want := h.state(d.Name())
				stop := h.run(d)
				h.must(tt.take(h, d, peer))
				testkit.Eventually(h, "the log says what was put back", func() bool { return strings.Contains(out.String(), tt.log) })
				testkit.Eventually(h, "the device is what it was", func() bool { return slices.Equal(h.state(d.Name()), want) })
				stop()
				// The look with which Run begins may come while the kernel takes
				// IPv6 off the device, and find that it cannot be given back yet.
				if text := out.String(); strings.Contains(text, "level=WARN") && tt.name != tooLow {
					h.Errorf("log:\n%s", text)
				}
			})
		})
	}
}

// TestPeersAddedWhileItRunsAreMaintained: and those that were removed are not.
func TestPeersAddedWhileItRunsAreMaintained(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		d := h.open(cfg)
		h.run(d)
		h.must(d.add(peer(2), peer(3)), d.retain(peer(3)))
		h.must(h.nl.NeighDel(fdb(d.Index(), peer(3).MAC, peer(3).Endpoint)))
		testkit.Eventually(h, "the entry is back", func() bool {
			return slices.Equal(h.table(d.Name()), slices.Sorted(slices.Values(lines(peer(3)))))
		})
	})
}

// TestForeignEntriesAreLeftAlone: nothing is written, whatever comes and
// goes beside ours.
func TestForeignEntriesAreLeftAlone(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		out := new(testkit.Log)
		cfg.Logger = out.Logger()
		d := h.open(cfg)
		h.must(d.add(peer(2)))
		stop := h.run(d)
		foreign := fdb(d.Index(), net.HardwareAddr{0, 0, 0, 0, 0, 0}, peer(9).Endpoint)
		h.must(h.nl.NeighAppend(foreign), h.nl.NeighDel(foreign), h.nl.NeighAppend(foreign))
		// Of ours, which Run has come to see after the others.
		h.must(h.nl.NeighDel(fdb(d.Index(), peer(2).MAC, peer(2).Endpoint)))
		want := append(lines(peer(2)), fmt.Sprintf("%s dst %s", foreign.HardwareAddr, foreign.IP))
		slices.Sort(want)
		testkit.Eventually(h, "our entry is back", func() bool { return slices.Equal(h.table(d.Name()), want) })
		stop()
		if n := strings.Count(out.String(), "restored"); n != 1 {
			h.Errorf("put back %d times:\n%s", n, out)
		}
	})
}

func TestDeviceThatIsGoneEndsRun(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(h host, d *kept)
	}{
		{"deleted", func(h host, d *kept) { h.must(d.Delete()) }},
		{"deleted with its interface", func(h host, d *kept) { h.must(h.nl.LinkDel(h.link("eth0"))) }},
		{"deleted and recreated by another", func(h host, d *kept) {
			v := h.vxlan(d.Name())
			again := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: d.Name()}, VxlanId: v.VxlanId, VtepDevIndex: v.VtepDevIndex, SrcAddr: v.SrcAddr}
			h.must(h.nl.LinkDel(v), h.nl.LinkAdd(again))
		}},
		{"another local address", func(h host, d *kept) {
			local := nl.NewRtAttr(nl.IFLA_VXLAN_LOCAL, []byte{192, 0, 2, 77})
			if d.Local.Is6() {
				local = nl.NewRtAttr(nl.IFLA_VXLAN_LOCAL6, net.ParseIP("2001:db8::77"))
			}
			h.must(h.change(d, local))
		}},
		{"moved to another namespace", func(h host, d *kept) {
			h.must(h.nl.LinkSetNsFd(h.vxlan(d.Name()), other(h)))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
				d := h.open(cfg)
				h.must(d.add(peer(2)))
				done := make(chan error, 1)
				go func() { done <- d.Run(context.Background()) }()
				tt.do(h, d)
				select {
				case err := <-done:
					if !errors.Is(err, keep.ErrDeviceGone) || !strings.Contains(err.Error(), d.Name()) {
						h.Errorf("%v, want keep.ErrDeviceGone with the name", err)
					}
				case <-time.After(testkit.Patience):
					h.Fatal("Run did not end")
				}
				h.must(d.Close())
			})
		})
	}
}

// change changes one VXLAN option of a device that is there.
func (h host) change(d *kept, option *nl.RtAttr) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(d.Index())
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddChild(option)
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// other is a namespace for things that leave the host's.
func other(h host) int {
	h.Helper()
	return netlabtest.Namespace(h, "elsewhere").FD()
}

// TestDeviceComesBackWithItsPeers is what a caller does after keep.ErrDeviceGone.
func TestDeviceComesBackWithItsPeers(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		peers := []Peer{peer(2), peer(3)}
		d := h.open(cfg)
		h.must(d.add(peers...))
		want := h.state(d.Name())
		h.must(d.Delete())
		if err := d.Run(context.Background()); !errors.Is(err, keep.ErrDeviceGone) {
			h.Fatal(err)
		}
		h.must(d.Close())
		d = h.open(cfg)
		h.must(d.add(peers...), d.retain(peers...))
		if got := h.state(d.Name()); !slices.Equal(got, want) {
			h.Errorf("it is\n%q\nand was\n%q", got, want)
		}
	})
}

// TestAnotherWriterIsNotAnsweredFaster: a program deletes an entry as soon as it is
// there. What is put back is bounded, and said once.
func TestAnotherWriterIsNotAnsweredFaster(t *testing.T) {
	inside(t, func(h host) {
		out := new(testkit.Log)
		cfg := h.config4()
		cfg.Logger = out.Logger()
		d := h.open(cfg)
		h.must(d.add(peer4(2)))
		stop := h.run(d)
		begin, back := time.Now(), 0
		entry := fdb(d.Index(), peer4(2).MAC, peer4(2).Endpoint)
		h.must(h.nl.NeighDel(entry))
		for ; back < 4; back++ {
			testkit.Eventually(t, "the entry is back", func() bool { return h.nl.NeighDel(entry) == nil })
		}
		// At the earliest at 0, 50, 150 and 350 ms.
		if took := time.Since(begin); took < 350*time.Millisecond {
			t.Errorf("put back %d times in %v", back, took)
		}
		stop()
		if n := strings.Count(out.String(), "restored"); n != 1 {
			t.Errorf("said %d times:\n%s", n, out)
		}
	})
}

// TestWhatCannotBeRestoredIsLoggedOnce: and tried again when something changes.
func TestWhatCannotBeRestoredIsLoggedOnce(t *testing.T) {
	inside(t, func(h host) {
		out := new(testkit.Log)
		cfg := h.config4()
		cfg.Logger = out.Logger()
		d := h.open(cfg)
		h.must(d.add(peer4(2)), h.nl.LinkSetDown(h.link("flannel.1")))
		taken, err := net.ListenPacket("udp4", "0.0.0.0:8472")
		h.must(err)
		stop := h.run(d)
		testkit.Eventually(t, "the log says why", func() bool { return strings.Contains(out.String(), "UDP port 8472 is in use") })
		h.must(h.nl.LinkSetAlias(h.link("flannel.1"), "one change"), h.nl.LinkSetAlias(h.link("flannel.1"), "another"))
		h.must(taken.Close(), h.nl.LinkSetAlias(h.link("flannel.1"), "the last"))
		testkit.Eventually(t, "it is up", func() bool { return h.link("flannel.1").Attrs().Flags&net.FlagUp != 0 })
		testkit.Eventually(t, "the peer is back", func() bool {
			return slices.Equal(h.table("flannel.1"), slices.Sorted(slices.Values(lines(peer4(2)))))
		})
		stop()
		if n := strings.Count(out.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, out)
		}
	})
}
