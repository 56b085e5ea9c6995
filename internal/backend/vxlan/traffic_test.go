package vxlan

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pair is two hosts whose devices know each other.
type pair struct {
	*netlab.Topology
	devices []*kept
}

// connect opens a device on each host, for pods of one or both families (IPv6:
// true) over an underlay of one.
func connect(t *testing.T, topo *netlab.Topology, pods []bool, ipv6Underlay bool) *pair {
	t.Helper()
	p := &pair{Topology: topo}
	subnets := func(h *netlab.Host) (all []netip.Prefix) {
		for _, ipv6 := range pods {
			if ipv6 {
				all = append(all, h.Subnet6)
			} else {
				all = append(all, h.Subnet)
			}
		}
		return all
	}
	local := func(h *netlab.Host) netip.Addr {
		if ipv6Underlay {
			return h.Addr6
		}
		return h.Addr
	}
	for i, h := range topo.Hosts {
		other, nl := topo.Hosts[1-i], h.NS.Netlink()
		if err := h.NS.Do(func() error {
			eth0, err := nl.LinkByName(netlab.UnderlayLink)
			if err != nil {
				return err
			}
			d, err := openKept(setup{
				Options: Options{VNI: 1}, IPv6: pods[0], Subnets: subnets(h),
				Networks: []netip.Prefix{netlab.Network, netlab.Network6},
				Underlay: underlay.Interface{Name: netlab.UnderlayLink, Index: eth0.Attrs().Index, MTU: eth0.Attrs().MTU},
				Local:    local(h), MAC: MAC(local(h), 1, pods[0]), Logger: slog.New(slog.DiscardHandler),
			})
			if err != nil {
				return err
			}
			t.Cleanup(func() { d.Close() })
			p.devices = append(p.devices, d)
			for _, s := range subnets(other) {
				err = errors.Join(err, d.add(Peer{Subnet: s, MAC: MAC(local(other), 1, pods[0]), Endpoint: local(other)}))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// socket is one that sends no packet that would be fragmented on its way.
type socket struct {
	*testing.T
	conn *net.UDPConn
	ipv6 bool
}

// dial opens a socket of a pod to one of another, which it returns too.
func dial(t *testing.T, from, to *netlab.Pod, ipv6 bool) (client, server socket) {
	t.Helper()
	addr := func(p *netlab.Pod) *net.UDPAddr {
		if ipv6 {
			return net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr6, 0))
		}
		return net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Addr, 0))
	}
	client, server = socket{t, nil, ipv6}, socket{t, nil, ipv6}
	if err := to.NS.Do(func() (err error) {
		server.conn, err = net.ListenUDP("udp", addr(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := from.NS.Do(func() (err error) {
		client.conn, err = net.DialUDP("udp", addr(from), server.conn.LocalAddr().(*net.UDPAddr))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.conn.Close(); server.conn.Close() })
	client.option(func(fd int) error {
		if ipv6 {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
		}
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	return client, server
}

func (s socket) option(f func(fd int) error) {
	s.Helper()
	raw, err := s.conn.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	if err != nil {
		s.Fatal(err)
	}
}

// payload is what a UDP packet of n bytes, with its IP header, carries.
func (s socket) payload(n int) []byte {
	if s.ipv6 {
		return make([]byte, n-40-8)
	}
	return make([]byte, n-20-8)
}

// pathMTU is the kernel's idea of what reaches the other end.
func (s socket) pathMTU() (mtu int) {
	s.Helper()
	s.option(func(fd int) (err error) {
		if s.ipv6 {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
		} else {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		}
		return err
	})
	return mtu
}

// host a ──────── host b   two devices, a veth between them, a pod behind each
func TestPacketOfTheMTUCrossesAndOneByteMoreIsRefused(t *testing.T) {
	for _, tt := range []struct {
		name     string
		pods     []bool // IPv6
		underlay bool   // IPv6
		mtu      int
	}{
		{"IPv4 over IPv4", []bool{false}, false, 1450},
		{"IPv6 over IPv6", []bool{true}, true, 1430},
		{"IPv4 over IPv6", []bool{false}, true, 1430},
		{"IPv6 over IPv4", []bool{true}, false, 1450},
		{"both over IPv4", []bool{false, true}, false, 1450},
		{"both over IPv6", []bool{true, false}, true, 1430},
	} {
		t.Run(tt.name, func(t *testing.T) {
			topo := netlabtest.New(t, netlab.Options{Wire: netlab.MTU})
			p := connect(t, topo, tt.pods, tt.underlay)
			for i := range 2 {
				if got := int(p.devices[i].TunnelMTU()); got != tt.mtu {
					t.Fatalf("MTU %d, want %d", got, tt.mtu)
				}
				for _, ipv6 := range tt.pods {
					client, server := dial(t, topo.Hosts[i].Pods[0], topo.Hosts[1-i].Pods[0], ipv6)
					buf := make([]byte, 4096)
					// The first may be lost, while neighbours are looked up.
					testkit.Eventually(t, "a packet of the MTU has crossed", func() bool {
						if _, err := client.conn.Write(client.payload(tt.mtu)); err != nil {
							t.Fatal(err)
						}
						_ = server.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
						n, err := server.conn.Read(buf)
						return err == nil && n == len(client.payload(tt.mtu))
					})
					// The pods' interfaces have 1500 bytes: the host says no.
					testkit.Eventually(t, "one byte more is refused", func() bool {
						_, err := client.conn.Write(client.payload(tt.mtu + 1))
						return errors.Is(err, unix.EMSGSIZE)
					})
					if got := client.pathMTU(); got != tt.mtu {
						t.Errorf("the pod learns of an MTU of %d, want %d", got, tt.mtu)
					}
				}
				if v, err := topo.Hosts[i].NS.Netlink().LinkByIndex(p.devices[i].Index()); err != nil || v.Attrs().Statistics.TxPackets == 0 {
					t.Errorf("%s has sent nothing (%v)", p.devices[i].Name(), err)
				}
			}
		})
	}
}

// TestPodsTalkWhileTheDeviceIsClosedAndTakenOver: what the daemon does when it
// restarts.
func TestPodsTalkWhileTheDeviceIsClosedAndTakenOver(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{})
	p := connect(t, topo, []bool{false}, false)
	client, server := dial(t, topo.Hosts[0].Pods[0], topo.Hosts[1].Pods[0], false)
	buf := make([]byte, 64)
	crosses := func() bool {
		if _, err := client.conn.Write([]byte("ping")); err != nil {
			t.Fatal(err)
		}
		_ = server.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		_, err := server.conn.Read(buf)
		return err == nil
	}
	testkit.Eventually(t, "packets cross", crosses)
	d := p.devices[0]
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "packets cross while nobody looks after the device", crosses)
	other := topo.Hosts[1]
	if err := topo.Hosts[0].NS.Do(func() error {
		again, err := openKept(d.setup)
		if err != nil {
			return err
		}
		defer again.Close()
		peers := []Peer{{Subnet: other.Subnet, MAC: p.devices[1].MAC, Endpoint: other.Addr}}
		return errors.Join(again.add(peers...), again.retain(peers...))
	}); err != nil {
		t.Fatal(err)
	}
	// Every one of them, now. Late ones of before have more bytes.
	for n := range 100 {
		if _, err := client.conn.Write([]byte{byte(n)}); err != nil {
			t.Fatal(err)
		}
		_ = server.conn.SetReadDeadline(time.Now().Add(testkit.Patience))
		got, err := server.conn.Read(buf)
		for err == nil && got > 1 {
			got, err = server.conn.Read(buf)
		}
		if err != nil || buf[0] != byte(n) {
			t.Fatalf("packet %d: %v, %v", n, buf[:got], err)
		}
	}
}
