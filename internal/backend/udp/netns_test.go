package udp

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/host/keep"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/tun"
)

// The tests here need root. Each has a namespace of its own, whose underlay is
// eth0, one end of a veth, with the addresses of node 1.

func TestMain(m *testing.M) { netlabtest.Main(m) }

func inside(t *testing.T, f func(ns *netlab.Namespace)) {
	t.Helper()
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = "eth0", 1500
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "wire"}
		testkit.Must(t, netlink.LinkAdd(veth))
		testkit.Must(t, netlink.LinkSetUp(veth))
		for _, a := range []netip.Addr{local4, local6} {
			testkit.Must(t, netlink.AddrAdd(veth, &netlink.Addr{
				IPNet: netlab.IPNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD,
			}))
		}
		f(ns)
	})
}

func config() Config {
	return Config{
		Underlay:   underlay.Interface{Name: "eth0", MTU: 1500, IPv4: local4},
		UDPOptions: backend.UDPOptions{Port: 8285},
		Subnets:    node(1).Subnets(),
		TunName:    "flannel0",
		Logger:     slog.New(slog.DiscardHandler),
	}
}

// openKept opens a backend whose device has a keeper of its own; end closes both.
func openKept(cfg Config) (b *Backend, end func() error, err error) {
	cfg.Keeper, err = keep.Open(keep.Config{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:5::/32")},
		Subnets:  cfg.Subnets, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, nil, err
	}
	if b, err = Open(cfg); err != nil {
		return nil, nil, errors.Join(err, cfg.Keeper.Close())
	}
	return b, func() error { return errors.Join(b.Close(), cfg.Keeper.Close()) }, nil
}

func open(t *testing.T, cfg Config) *Backend {
	t.Helper()
	b, end, err := openKept(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end() })
	return b
}

// addrs are the addresses of flannel0.
func addrs(t *testing.T) (all []string) {
	t.Helper()
	link, err := netlink.LinkByName("flannel0")
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list {
		all = append(all, a.IPNet.String())
	}
	slices.Sort(all)
	return all
}

func TestDeviceLooksAsFlannelsDoes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		mtu    int
		queue  int
		addrs  []string
	}{
		{"dual stack", func(*Config) {}, 1472, 1000,
			[]string{"10.5.1.0/32", "fd00:5:1::/128"}},
		{"IPv4 only", func(c *Config) {
			c.Subnets = c.Subnets[:1]
		}, 1472, 1000, []string{"10.5.1.0/32"}},
		{"IPv6 underlay", func(c *Config) {
			c.Underlay.IPv4, c.Underlay.IPv6 = netip.Addr{}, local6
		}, 1452, 1000,
			[]string{"10.5.1.0/32", "fd00:5:1::/128"}},
		{"plain", func(c *Config) { c.TunOffload = tun.Off }, 1472, 1000,
			[]string{"10.5.1.0/32", "fd00:5:1::/128"}},
		{"jumbo frames", func(c *Config) { c.Underlay.MTU = 9000 }, 8972, 1000,
			[]string{"10.5.1.0/32", "fd00:5:1::/128"}},
		{"little memory", func(c *Config) { c.Memory = fastpath.MemorySmall }, 1472, 500,
			[]string{"10.5.1.0/32", "fd00:5:1::/128"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(*netlab.Namespace) {
				cfg := config()
				tt.change(&cfg)
				b, end, err := openKept(cfg)
				if err != nil {
					t.Fatal(err)
				}
				link, err := netlink.LinkByName("flannel0")
				if err != nil {
					t.Fatal(err)
				}
				if got := link.Attrs().MTU; got != tt.mtu || b.MTU() != tt.mtu {
					t.Errorf("MTU %d, reported %d, want %d", got, b.MTU(), tt.mtu)
				}
				if link.Attrs().Flags&net.FlagUp == 0 {
					t.Error("flannel0 is down")
				}
				if got := link.Attrs().TxQLen; got != tt.queue {
					t.Errorf("txqueuelen %d, want %d", got, tt.queue)
				}
				if got := addrs(t); !slices.Equal(got, tt.addrs) { // no link-local one
					t.Errorf("addresses %v, want %v", got, tt.addrs)
				}
				if err := end(); err != nil {
					t.Fatal(err)
				}
				if _, err := netlink.LinkByName("flannel0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
					t.Errorf("after Close: %v", err)
				}
			})
		})
	}
}

// TestFailureLeavesNothing: whatever stops Open, there is no device, no route
// and no descriptor afterwards, and it works once the cause is gone.
func TestFailureLeavesNothing(t *testing.T) {
	logger := slog.New(slog.DiscardHandler)
	for _, tt := range []struct {
		name  string
		cause func(t *testing.T, cfg *Config) (repair func())
		err   string
		keeps bool // an interface flannel0 that was there
	}{
		{"port in use", func(t *testing.T, cfg *Config) func() {
			c, err := net.ListenPacket("udp", netip.AddrPortFrom(local4, cfg.Port).String())
			if err != nil {
				t.Fatal(err)
			}
			return func() { c.Close() }
		}, "bind UDP 192.0.2.1:8285: address already in use", false},
		{"port of a kernel's device", func(t *testing.T, cfg *Config) func() {
			dev := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "vxlan7"}, VxlanId: 7, Port: int(cfg.Port)}
			if err := netlink.LinkAdd(dev); err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetUp(dev); err != nil {
				t.Fatal(err)
			}
			return func() { netlink.LinkDel(dev) }
		}, "the kernel's vxlan device vxlan7 holds it; delete the device with 'ip link delete vxlan7'", false},
		{"address of another host", func(t *testing.T, cfg *Config) func() {
			good := cfg.Underlay.IPv4
			cfg.Underlay.IPv4 = netip.MustParseAddr("192.0.2.99")
			return func() { cfg.Underlay.IPv4 = good }
		}, "the address is not on this host", false},
		{"IPv6 turned off", func(t *testing.T, cfg *Config) func() {
			const file = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
			if err := os.WriteFile(file, []byte("1"), 0); err != nil {
				t.Fatal(err)
			}
			return func() { os.WriteFile(file, []byte("0"), 0) }
		}, "IPv6 is disabled on this host", false},
		{"a bridge of that name", func(t *testing.T, cfg *Config) func() {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "flannel0"
			bridge := &netlink.Bridge{LinkAttrs: attrs}
			if err := netlink.LinkAdd(bridge); err != nil {
				t.Fatal(err)
			}
			return func() { netlink.LinkDel(bridge) }
		}, "interface flannel0 exists and is not twilld's (bridge)", true},
		{"a second backend", func(t *testing.T, cfg *Config) func() {
			_, end, err := openKept(*cfg)
			if err != nil {
				t.Fatal(err)
			}
			return func() { end() }
		}, "interface flannel0 is open in another process", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inside(t, func(*netlab.Namespace) {
				cfg := config()
				cfg.Logger = logger
				// Go's poller and netlink open theirs once.
				if _, end, err := openKept(cfg); err != nil || end() != nil {
					t.Fatal(err)
				}
				repair := tt.cause(t, &cfg)
				before := descriptors(t)
				_, end, err := openKept(cfg)
				if err == nil {
					end()
					t.Fatal("opened")
				}
				if !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v\nlacks %q", err, tt.err)
				}
				if _, err := netlink.LinkByName("flannel0"); (err == nil) != tt.keeps {
					t.Errorf("flannel0 afterwards: %v", err)
				}
				testkit.Eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before })
				repair()
				open(t, cfg)
			})
		})
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestPeersShowInTheStatus(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		b := open(t, config())
		if n := len(b.Status().Peers); n != 0 {
			t.Errorf("%d peers before there are any", n)
		}
		b.SetPeers([]Peer{peerOf(node(2), local4)})
		b.engine.Peers().All()[0].Traffic.RXBytes.Add(99)
		b.SetPeers([]Peer{peerOf(node(2), local4), peerOf(node(4), local4)})
		s := b.Status()
		if s.Port != 8285 || len(s.Devices) != 1 || s.Devices[0].Name != "flannel0" || s.Devices[0].MTU != 1472 || s.SourceCheck != "strict" || len(s.Offloads) != len(fastpath.SwitchFlags) {
			t.Errorf("%+v", s)
		}
		if len(s.Peers) != 2 || s.Peers[0].PublicIP != node(2).PublicIP || s.Peers[0].RXBytes != 99 || s.Peers[1].PublicIP != node(4).PublicIP {
			t.Errorf("%+v", s.Peers)
		}
	})
}

// TestDeletedDeviceEndsTheBackend: who deletes it is not fought.
func TestDeletedDeviceEndsTheBackend(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		b := open(t, config())
		done := make(chan error, 1)
		go func() { done <- b.Run(context.Background()) }()
		link, err := netlink.LinkByName("flannel0")
		if err := errors.Join(err, netlink.LinkDel(link)); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "Run has ended", func() bool { return len(done) == 1 })
		if err := <-done; err == nil {
			t.Error("Run ended without an error")
		}
		if _, err := netlink.LinkByName("flannel0"); !errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Errorf("flannel0 afterwards: %v", err)
		}
	})
}

// TestOpenRefusesALeftTUN: a persistent device may be anybody's, so it is named
// together with what to do about it.
func TestOpenRefusesALeftTUN(t *testing.T) {
	inside(t, func(*netlab.Namespace) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "flannel0"
		left := &netlink.Tuntap{LinkAttrs: attrs, Mode: unix.IFF_TUN, Flags: unix.IFF_NO_PI}
		if err := netlink.LinkAdd(left); err != nil {
			t.Fatal(err)
		}
		_, end, err := openKept(config())
		if err == nil {
			end()
			t.Fatal("opened")
		}
		if !strings.Contains(err.Error(), "(persistent TUN)") || !strings.Contains(err.Error(), "twilld --cleanup") {
			t.Errorf("%v", err)
		}
		if err := netlink.LinkDel(left); err != nil {
			t.Fatal(err)
		}
		open(t, config())
	})
}
