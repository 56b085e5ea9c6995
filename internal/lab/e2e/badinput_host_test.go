package e2e

import (
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/tun"
)

// link returns a link of the host.
func (s *site) link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := s.NS.Netlink().LinkByName(name)
	if err != nil {
		t.Fatalf("%s on %s: %v", name, s.NS, err)
	}
	return l
}

func TestUnusableInterfaceIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("there is none of that name", func(t *testing.T) {
		s := newSite(t)
		s.refuses(t, because("--iface=eth7: no such interface", "this host has", "eth0 (172.31.9.11"), s.flagsAnyInterface("--iface=eth7")...)
	})
	t.Run("it is down", func(t *testing.T) {
		s := newSite(t)
		testkit.Must(t, s.NS.Netlink().LinkSetDown(s.link(t, netlab.UnderlayLink)))
		s.refuses(t, because("eth0 is down", "ip link set eth0 up"), s.flags()...)
	})
	t.Run("it has no address", func(t *testing.T) {
		s := newSite(t)
		eth0 := s.link(t, netlab.UnderlayLink)
		addrs, err := s.NS.Netlink().AddrList(eth0, netlink.FAMILY_V4)
		testkit.Must(t, err)
		for _, a := range addrs {
			testkit.Must(t, s.NS.Netlink().AddrDel(eth0, &a))
		}
		s.refuses(t, because("eth0 has no usable IPv4 address", "this host has eth0", "correct this, or select another interface with --iface"), s.flags()...)
	})
	t.Run("it has no IPv6 address either", func(t *testing.T) {
		s := newSite(t)
		s.write(dualStackLeases)
		testkit.Must(t, s.NS.Sysctl("net/ipv6/conf/all/disable_ipv6", "1"))
		// An IPv4 underlay carries the packets of both families.
		s.refuses(t, because("set address fd00:10:5:1::/128 on flannel0", "IPv6 is disabled on this host", "disable_ipv6=0"), s.flags()...)
	})
	t.Run("its MTU is too small", func(t *testing.T) {
		s := newSite(t)
		testkit.Must(t, s.NS.Netlink().LinkSetMTU(s.link(t, netlab.UnderlayLink), 90))
		s.refuses(t, because("eth0: MTU 90", "raise it"), s.flags()...)
	})
	t.Run("the public address is not its own", func(t *testing.T) {
		s := newSite(t)
		s.refuses(t, because("no lease for this node: looked for 192.0.2.1"), s.flags("--public-ip=192.0.2.1")...)
	})
}

// release closes c while no child that another test has forked, but that has not called
// exec yet, holds a copy of it, which would keep its port bound.
func release(c io.Closer) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	c.Close()
}

func TestPortInUseIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	hold := func(t *testing.T, network, addr string) {
		t.Helper()
		switch network {
		case "udp":
			c, err := s.NS.ListenPacket(network, addr)
			testkit.Must(t, err)
			t.Cleanup(func() { release(c) })
		case "tcp":
			l, err := s.NS.Listen(network, addr)
			testkit.Must(t, err)
			t.Cleanup(func() { release(l) })
		}
	}
	for _, pairs := range []string{"1", "2"} {
		t.Run("data port with thread pairs="+pairs, func(t *testing.T) {
			hold(t, "udp", "172.31.9.11:8285")
			s.refuses(t, because("172.31.9.11:8285: address already in use", "another flanneld or twilld", "stop it"), s.flags("--thread-pairs="+pairs)...)
		})
	}
	t.Run("data port on all addresses", func(t *testing.T) {
		hold(t, "udp", "0.0.0.0:8285")
		s.refuses(t, because("172.31.9.11:8285: address already in use"), s.flags()...)
	})
	t.Run("health port", func(t *testing.T) {
		hold(t, "tcp", "172.31.9.11:8081")
		s.refuses(t, because("172.31.9.11:8081", "address already in use", "--healthz-port"), s.flags("--healthz-ip=172.31.9.11", "--healthz-port=8081")...)
	})
	t.Run("health address of another host", func(t *testing.T) {
		s.refuses(t, because("192.0.2.1:8081", "no interface has this address", "--healthz-ip"), s.flags("--healthz-ip=192.0.2.1", "--healthz-port=8081")...)
	})
}

func TestInterfaceInFlannel0sPlaceIsRefused(t *testing.T) {
	t.Parallel()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel0"
	const remedy = "ip link delete flannel0"
	for _, c := range []struct {
		name string
		link netlink.Link
		says string
	}{
		{"bridge", &netlink.Bridge{LinkAttrs: attrs}, "(bridge)"},
		{"veth", &netlink.Veth{LinkAttrs: attrs, PeerName: "peer0"}, "(veth)"},
		{"TAP", &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}, "(TAP)"},
		{"persistent TUN", &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN}, "(persistent TUN)"},
		{"persistent TUN of many queues", &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TUN,
			Flags: netlink.TUNTAP_MULTI_QUEUE_DEFAULTS | netlink.TUNTAP_VNET_HDR, Queues: 2}, "(persistent TUN)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			// Do, since TUN devices are not made through netlink.
			testkit.Must(t, s.NS.Do(func() error { return netlink.LinkAdd(c.link) }))
			if tt, ok := c.link.(*netlink.Tuntap); ok {
				for _, f := range tt.Fds {
					f.Close()
				}
			}
			for _, mode := range []string{"auto", "off"} {
				s.refuses(t, because("interface flannel0 exists and is not twilld's", c.says, remedy, "--tun-name"), s.flags("--tun-offload="+mode)...)
			}
		})
	}
}

func TestFlannel0OfAnotherProcessIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		held tun.Config
	}{
		{"offload device of one queue", tun.Config{Queues: 1, Offload: tun.On}},
		{"offload device of two queues", tun.Config{Queues: 2, Offload: tun.On}},
		{"plain device", tun.Config{Queues: 1, Offload: tun.Off}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t)
			c.held.Name, c.held.Logger = "flannel0", slog.New(slog.DiscardHandler)
			var device *tun.Device
			testkit.Must(t, s.NS.Do(func() (err error) {
				device, err = tun.Open(c.held)
				return err
			}))
			defer device.Close()
			for _, flags := range [][]string{{"--thread-pairs=1"}, {"--thread-pairs=2"}, {"--tun-offload=off"}} {
				s.refuses(t, because("flannel0 is open in another process", "stop the flanneld or twilld", "--tun-name"), s.flags(flags...)...)
			}
		})
	}
}

// pod-a ── host a, another route to the network ──────────── host b ── pod-b
func TestRouteOfAnotherProgramToTheNetworkIsLeftAloneAndReported(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d, nl := l.daemons[0], l.Hosts[0].NS.Netlink()
	other := &netlink.Route{
		LinkIndex: l.link(0, netlab.UnderlayLink).Attrs().Index,
		Dst:       netlab.IPNet(netlab.Network), Gw: netip.MustParseAddr("172.31.9.99").AsSlice(),
	}
	testkit.Must(t, nl.RouteAdd(other))
	l.start()
	testkit.Eventually(t, "the log names the route and the remedy", func() bool {
		log := d.stderr.String()
		return strings.Contains(log, "set route 10.5.0.0/16 dev flannel0: another route to this destination exists") && strings.Contains(log, "ip route show 10.5.0.0/16")
	})
	if err := pingOnce(l.pod(0), l.pod(1).Addr); err == nil {
		t.Error("the route of another program is not used")
	}
	testkit.Must(t, nl.RouteDel(other)) // it is still there
	testkit.Eventually(t, "pods talk once it has gone", func() bool { return pingOnce(l.pod(0), l.pod(1).Addr) == nil })
}

func TestHostWithoutTUNIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, mode := range []string{"auto", "on", "off"} {
		t.Run("tun-offload="+mode, func(t *testing.T) {
			flag := "--tun-offload=" + mode
			s.refusesWithout(t, []string{"-dir=/dev", "-mknod"},
				because("/dev/net/tun is missing", "modprobe tun", "MKNOD"), s.flags(flag)...)
			s.refusesWithout(t, []string{"-device=/dev/net/tun"},
				because("permission denied", "allow the container to use /dev/net/tun"), s.flags(flag)...)
			s.refusesWithout(t, []string{"-net-admin"},
				because("operation not permitted", "CAP_NET_ADMIN"), s.flags(flag)...)
		})
	}
}

func TestOffloadThatMustBeOnIsRefusedWhereTheKernelLacksIt(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"tun-offload": "TUNSETOFFLOAD: invalid argument",
		"udp-gso":     "UDP_SEGMENT: protocol not available",
		"udp-gro":     "UDP_GRO: protocol not available",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.refusesWithout(t, []string{"-offload=" + name},
				because("--"+name+"=on: ", says, "use --"+name+"=auto to run without it"), s.flags("--"+name+"=on")...)
		})
	}
	for _, name := range []string{"tun-gro", "tun-gro-udp"} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.refuses(t, because("--"+name+"=on: ", "use --"+name+"=auto to run without it"), s.flags("--tun-offload=off", "--"+name+"=on")...)
		})
	}
	// As some kernels do that damage what they segment.
	t.Run("udp-gso that loses segments", func(t *testing.T) {
		s := newSite(t)
		stifleLoopback(t, s.NS)
		s.refuses(t, because("--udp-gso=on: self-test on loopback", "did not arrive"), s.flags("--udp-gso=on")...)
	})
}
