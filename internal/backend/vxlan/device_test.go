package vxlan

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestDeviceIsReadyForPods(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config func(h host) setup
		device string
		mtu    int
		addrs  []string
	}{
		{"IPv4", host.config4, "flannel.1", 1450, []string{"10.5.1.0/32"}},
		{"IPv6", host.config6, "flannel-v6.1", 1430, []string{"fd00:5:0:1::/128"}},
		{"IPv4 pods over IPv6", func(h host) setup {
			c := h.config4()
			c.Local = local6
			return c
		}, "flannel.1", 1430, []string{"10.5.1.0/32"}},
		{"both kinds of pods over IPv6, on one device", func(h host) setup {
			c := h.config4()
			c.Local, c.Subnets = local6, append(c.Subnets, h.config6().Subnets...)
			return c
		}, "flannel.1", 1430, []string{"10.5.1.0/32", "fd00:5:0:1::/128"}},
		{"MTU option", func(h host) setup {
			c := h.config4()
			c.VNI, c.Options.MTU = 77, 1400
			return c
		}, "flannel.77", 1350, []string{"10.5.1.0/32"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(h host) {
				cfg := tt.config(h)
				h.must(os.WriteFile("/proc/sys/net/ipv6/conf/default/accept_ra", []byte("1"), 0))
				d := h.open(cfg)
				a := h.link(tt.device).Attrs()
				if d.Name() != tt.device || d.Index() != a.Index || int(d.TunnelMTU()) != tt.mtu || a.MTU != tt.mtu {
					t.Errorf("reported %s, index %d, MTU %d; has index %d, MTU %d, want MTU %d", d.Name(), d.Index(), int(d.TunnelMTU()), a.Index, a.MTU, tt.mtu)
				}
				if a.Flags&net.FlagUp == 0 {
					t.Error("it is down")
				}
				if !bytes.Equal(a.HardwareAddr, cfg.MAC) || !bytes.Equal(d.MAC, cfg.MAC) {
					t.Errorf("MAC %s, reported %s, want %s", a.HardwareAddr, d.MAC, cfg.MAC)
				}
				if got := h.addrs(tt.device); !slices.Equal(got, tt.addrs) { // no link-local one
					t.Errorf("addresses %v, want %v", got, tt.addrs)
				}
				if ra, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + tt.device + "/accept_ra"); err != nil || string(ra) != "0\n" {
					t.Errorf("accept_ra %q, %v", ra, err)
				}
				h.must(d.Close())
				h.link(tt.device) // it stays
			})
		})
	}
}

// TestTwoFamiliesOverIPv6NeedOneDevice is why setup.Subnets may have both.
func TestTwoFamiliesOverIPv6NeedOneDevice(t *testing.T) {
	inside(t, func(h host) {
		h.open(h.config6())
		cfg := h.config4()
		cfg.Local = local6
		_, err := openKept(cfg)
		if err == nil || !strings.Contains(err.Error(), "flannel-v6.1 already has VNI 1 and UDP port 8472: delete it (ip link delete flannel-v6.1), or set another Backend.VNI or Backend.Port") {
			t.Errorf("%v", err)
		}
		if _, err := h.nl.LinkByName("flannel.1"); err == nil {
			t.Error("there is a flannel.1")
		}
	})
}

func TestRestartFindsTheDeviceAndWritesNothing(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, peer func(int) Peer) {
		peers := []Peer{peer(2), peer(3), peer(4)}
		heard := h.listen()
		first := h.open(cfg)
		// The kernel announces an IPv6 address some time later.
		testkit.Eventually(h, "the kernel has announced the address", func() bool {
			return slices.ContainsFunc(heard(first.Name()), func(m string) bool {
				return strings.HasPrefix(m, fmt.Sprintf("message of type %d:", unix.RTM_NEWADDR))
			})
		})
		h.must(first.add(peers...), first.Close())
		table := h.table(first.Name())
		heard(first.Name())

		cfg.MAC = net.HardwareAddr{2, 9, 9, 9, 9, 9} // another than it was
		d := h.open(cfg)
		h.must(d.add(peers...), d.retain(peers...), d.add(peers...))
		h.run(d)() // looks once
		if got := heard(first.Name()); len(got) > 0 {
			h.Errorf("changes were announced:\n%s", strings.Join(got, "\n"))
		}
		if d.Index() != first.Index() || !bytes.Equal(d.MAC, first.MAC) {
			h.Errorf("index %d, MAC %s; before the restart %d, %s", d.Index(), d.MAC, first.Index(), first.MAC)
		}
		h.hasTable(d.Name(), table...)
		// Changes are heard.
		h.must(d.add(peer(5)))
		if got := h.hears(heard, d.Name(), 2); len(got) != 2 {
			h.Errorf("a new peer is %d changes, want 2:\n%s", len(got), strings.Join(got, "\n"))
		}
	})
}

// TestDeviceIsCreatedWithItsMAC: systemd-udevd gives another address to a new device
// whose address was not set.
func TestDeviceIsCreatedWithItsMAC(t *testing.T) {
	forFamilies(t, func(h host, cfg setup, _ func(int) Peer) {
		heard := h.listen(unix.RTNLGRP_LINK)
		d := h.open(cfg)
		if first := h.hears(heard, d.Name(), 1)[0]; !strings.Contains(first, hex.EncodeToString(cfg.MAC)) {
			h.Errorf("the first message lacks %s:\n%s", cfg.MAC, first)
		}
	})
}

func TestMACOfAnExistingDeviceIsRead(t *testing.T) {
	inside(t, func(h host) {
		if m, err := Existing(1, false); m != nil || err != nil {
			t.Errorf("of no device %v, %v", m, err)
		}
		d := h.open(h.config4())
		if m, err := Existing(1, false); !bytes.Equal(m, d.MAC) || err != nil {
			t.Errorf("%v, %v, want %s", m, err, d.MAC)
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "flannel-v6.1"}}
		h.must(h.nl.LinkAdd(bridge))
		if m, err := Existing(1, true); m != nil || err != nil {
			t.Errorf("of a bridge %v, %v", m, err)
		}
	})
}

// TestChangedOptionIsApplied: those that the kernel can change are on the live
// device, which stays the same; for others there is a new device, with the MAC
// of the old one.
func TestChangedOptionIsApplied(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h host, c *setup)
		live   bool
		is     func(h host, v *netlink.Vxlan) bool
	}{
		{"MTU option", func(h host, c *setup) { c.Options.MTU = 1400 }, true,
			func(h host, v *netlink.Vxlan) bool { return v.MTU == 1350 }},
		{"MTU of the underlay, less", func(h host, c *setup) {
			h.must(h.nl.LinkSetMTU(h.link("eth0"), 1400))
			c.Underlay = h.eth0()
		}, true, func(h host, v *netlink.Vxlan) bool { return v.MTU == 1350 }},
		{"MTU of the underlay, more", func(h host, c *setup) {
			h.must(h.nl.LinkSetMTU(h.link("eth0"), 9000))
			c.Underlay = h.eth0()
		}, true, func(h host, v *netlink.Vxlan) bool { return v.MTU == 8950 }},
		{"Learning", func(h host, c *setup) { c.Learning = true }, true,
			func(h host, v *netlink.Vxlan) bool { return v.Learning && v.MTU == 1450 }},
		{"DirectRouting", func(h host, c *setup) { c.DirectRouting = true }, true,
			func(h host, v *netlink.Vxlan) bool { return v.MTU == 1450 }},
		{"subnet", func(h host, c *setup) { c.Subnets = []netip.Prefix{netip.MustParsePrefix("10.5.7.0/24")} }, true,
			func(h host, v *netlink.Vxlan) bool { return slices.Equal(h.addrs(v.Name), []string{"10.5.7.0/32"}) }},
		{"Port", func(h host, c *setup) { c.Port = 4789 }, false,
			func(h host, v *netlink.Vxlan) bool { return v.Port == 4789 }},
		{"Port, the default by its number", func(h host, c *setup) { c.Port = 8472 }, true,
			func(h host, v *netlink.Vxlan) bool { return v.Port == 8472 }},
		{"GBP", func(h host, c *setup) { c.GBP = true }, false,
			func(h host, v *netlink.Vxlan) bool { return v.GBP }},
		{"local address", func(h host, c *setup) {
			h.must(h.nl.AddrAdd(h.link("eth0"), addr("192.0.2.100/24")))
			c.Local = netip.MustParseAddr("192.0.2.100")
		}, false, func(h host, v *netlink.Vxlan) bool { return v.SrcAddr.String() == "192.0.2.100" }},
		{"family of the underlay", func(h host, c *setup) { c.Local = local6 }, false,
			func(h host, v *netlink.Vxlan) bool { return v.SrcAddr.Equal(local6.AsSlice()) && v.MTU == 1430 }},
		{"interface", func(h host, c *setup) {
			wire := h.link("wire").Attrs()
			c.Underlay = underlay.Interface{Name: "wire", Index: wire.Index, MTU: wire.MTU}
		}, false, func(h host, v *netlink.Vxlan) bool { return v.VtepDevIndex == h.link("wire").Attrs().Index }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(h host) {
				before := h.open(h.config4())
				h.must(before.add(peer4(2)))
				cfg := h.config4()
				cfg.MAC = net.HardwareAddr{2, 9, 9, 9, 9, 9}
				tt.change(h, &cfg)
				out := new(testkit.Log)
				cfg.Logger = out.Logger()
				d := h.open(cfg)
				v := h.vxlan("flannel.1")
				if !tt.is(h, v) {
					t.Errorf("not applied: %+v, addresses %v", v, h.addrs("flannel.1"))
				}
				if !bytes.Equal(v.HardwareAddr, before.MAC) || !bytes.Equal(d.MAC, before.MAC) {
					t.Errorf("MAC %s, reported %s, was %s", v.HardwareAddr, d.MAC, before.MAC)
				}
				if same := d.Index() == before.Index(); same != tt.live {
					t.Errorf("the same device: %t, want %t", same, tt.live)
				}
				if made := strings.Contains(out.String(), "replacing VXLAN device"); made == tt.live {
					t.Errorf("log of a device that was recreated (%t):\n%s", !tt.live, out)
				}
				if tt.live {
					h.hasTable("flannel.1", lines(peer4(2))...)
				}
			})
		})
	}
}

func TestForeignAddressesOfTheDeviceStay(t *testing.T) {
	inside(t, func(h host) {
		d := h.open(h.config4())
		dev := h.link("flannel.1")
		foreign := []string{"198.51.100.1/32", "10.5.200.1/24", "fe80::7/64"}
		for _, a := range foreign {
			h.must(h.nl.AddrAdd(dev, addr(a)))
		}
		h.must(h.nl.AddrAdd(dev, addr("10.5.9.0/32")), d.Close()) // of a former subnet
		h.open(h.config4())
		want := slices.Sorted(slices.Values(append(foreign, "10.5.1.0/32")))
		if got := h.addrs("flannel.1"); !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
	})
}

// TestFailureLeavesNothing: whatever stops Open, the error says what to do, and
// there is no device afterwards that was not there.
func TestFailureLeavesNothing(t *testing.T) {
	const name = "flannel.1"
	for _, tt := range []struct {
		what  string
		cause func(h host, c *setup)
		err   string
		keeps string // type of the interface of this name that stays
	}{
		{"no address", func(h host, c *setup) { c.Local = netip.Addr{} }, "create flannel.1: interface eth0 has no address for it: add one, or choose another interface with --iface", ""},
		{"no subnet", func(h host, c *setup) { c.Subnets = nil }, "this node has no subnet of its address family", ""},
		{"no MAC", func(h host, c *setup) { c.MAC = nil }, "no MAC address", ""},
		{"multicast MAC", func(h host, c *setup) { c.MAC = net.HardwareAddr{1, 0, 0, 0, 0, 1} }, "01:00:00:00:00:01 is not a unicast MAC address", ""},
		{"no index", func(h host, c *setup) { c.Underlay.Index = 0 }, "interface eth0 has no index", ""},
		{"interface gone", func(h host, c *setup) { c.Underlay.Index = 9999 }, "create VXLAN device flannel.1 on eth0: ", ""},
		{"a bridge of that name", func(h host, c *setup) {
			h.must(h.nl.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
		}, "interface flannel.1 exists and is not a VXLAN device (bridge): delete it (ip link delete flannel.1), or set another Backend.VNI in the network configuration", "bridge"},
		{"VNI of another device", func(h host, c *setup) {
			h.must(h.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan0"}, VxlanId: 1, Port: 8472}))
		}, "file exists; vxlan0 already has VNI 1 and UDP port 8472: delete it (ip link delete vxlan0), or set another Backend.VNI or Backend.Port", ""},
		{"UDP port taken", func(h host, c *setup) {
			taken, err := net.ListenPacket("udp4", "0.0.0.0:8472")
			h.must(err)
			h.Cleanup(func() { taken.Close() })
		}, "address already in use; UDP port 8472 is in use: find the process that holds it with 'ss -lunp sport = :8472', or set another Backend.Port", ""},
		{"UDP port taken by another device", func(h host, c *setup) {
			other := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "cilium_vxlan"}, VxlanId: 7, Port: 8472, FlowBased: true, GBP: true}
			h.must(h.nl.LinkAdd(other))
			h.must(h.nl.LinkSetUp(other))
		}, "UDP port 8472 is in use: the kernel's vxlan device cilium_vxlan holds it; delete the device with 'ip link delete cilium_vxlan'", ""},
		{"UDP port taken, of a device that is there", func(h host, c *setup) {
			h.must(h.nl.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: 1, VtepDevIndex: c.Underlay.Index, SrcAddr: local4.AsSlice()}))
			taken, err := net.ListenPacket("udp4", "0.0.0.0:8472")
			h.must(err)
			h.Cleanup(func() { taken.Close() })
		}, "UDP port 8472 is in use", "vxlan"},
		{"IPv6 turned off on the underlay", func(h host, c *setup) {
			c.Local = local6
			h.must(os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0))
		}, "IPv6 is disabled on the interface: set net.ipv6.conf.eth0.disable_ipv6=0", ""},
		{"IPv6 turned off on the device", func(h host, c *setup) {
			c.Subnets = append(c.Subnets, netip.MustParsePrefix("fd00:5:0:1::/64"))
			h.must(os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
		}, "IPv6 is disabled on this host: set net.ipv6.conf.all.disable_ipv6=0", ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			inside(t, func(h host) {
				cfg := h.config4()
				tt.cause(h, &cfg)
				d, err := openKept(cfg)
				if err == nil {
					d.Close()
					t.Fatal("opened")
				}
				if !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v\nlacks %q", err, tt.err)
				}
				kind := ""
				if l, err := h.nl.LinkByName(name); err == nil {
					kind = l.Type()
				}
				if kind != tt.keeps {
					t.Errorf("afterwards there is a %q, want %q", kind, tt.keeps)
				}
			})
		})
	}
}

func TestDeleteRemovesTheDeviceAndMayBeRepeated(t *testing.T) {
	inside(t, func(h host) {
		d := h.open(h.config4())
		h.must(d.Delete())
		if _, err := h.nl.LinkByName("flannel.1"); err == nil {
			t.Error("it is still there")
		}
		h.must(d.Delete())
		h.open(h.config4())
	})
}

func TestDescriptorsAreClosed(t *testing.T) {
	inside(t, func(h host) {
		count := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			h.must(err)
			return len(entries)
		}
		h.must(h.open(h.config4()).Close()) // Go's poller opens its own once
		before := count()
		for range 3 {
			d, err := openKept(h.config4())
			h.must(err, d.Close())
			bad := h.config4()
			bad.Underlay.Index = 9999
			if _, err := openKept(bad); err == nil {
				t.Fatal("opened")
			}
		}
		testkit.Eventually(t, fmt.Sprintf("there are %d descriptors again", before), func() bool { return count() <= before })
	})
}
