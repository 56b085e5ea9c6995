package e2e

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// conversation is a TCP connection between pod-a and pod-b that should survive what
// happens to the hosts.
type conversation struct{ a, b *net.TCPConn }

func (l *lab) talk() conversation {
	l.t.Helper()
	server, err := l.pod(1).NS.Listen("tcp", netip.AddrPortFrom(l.pod(1).Addr, 0).String())
	testkit.Must(l.t, err)
	defer server.Close()
	a, b, err := connect(server, l.pod(0))
	testkit.Must(l.t, err)
	l.t.Cleanup(func() { a.Close(); b.Close() })
	return conversation{a, b}
}

// goesOn moves bytes both ways, however long TCP waits before it retransmits what
// was lost.
func (c conversation) goesOn(t *testing.T) {
	t.Helper()
	for _, way := range [][2]*net.TCPConn{{c.a, c.b}, {c.b, c.a}} {
		if err := exchange(testkit.Moving{Conn: way[0]}, testkit.Moving{Conn: way[1]}, 1<<20); err != nil {
			t.Errorf("the connection did not survive the change: %v", err)
		}
	}
}

// exchange sends n bytes from one end to the other; neither is closed.
func exchange(from, to net.Conn, n int) error {
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(make([]byte, n))
		sent <- err
	}()
	buf := make([]byte, 1<<16)
	for got := 0; got < n; {
		m, err := to.Read(buf)
		if err != nil {
			return fmt.Errorf("%d of %d bytes: %w", got, n, err)
		}
		got += m
	}
	return <-sent
}

// env returns subnet.env, which the CNI plugin reads.
func (d *daemon) env() string {
	d.t.Helper()
	text, err := os.ReadFile(d.subnetFile)
	testkit.Must(d.t, err)
	return string(text)
}

// waits waits until the daemon reports that it is not ready, and why.
func (d *daemon) waits(why string) {
	d.t.Helper()
	testkit.Eventually(d.t, "not ready: "+why, func() bool { return strings.Contains(d.status().Waiting, why) })
}

// underlayLink returns the interface of host number i to the others, as it is
// now.
func (l *lab) underlayLink(i int) netlink.Link {
	l.t.Helper()
	link, err := l.Hosts[i].NS.Netlink().LinkByName(netlab.UnderlayLink)
	testkit.Must(l.t, err)
	return link
}

// moveHost gives host number i another IPv4 address on the underlay, as a DHCP
// client does: it removes the old one, then adds the new one.
func (l *lab) moveHost(i int, to netip.Addr) {
	l.t.Helper()
	h := l.Hosts[i]
	v6 := h.Addr6
	l.dropIPv4(h)
	h.Addr, h.Addr6 = to, v6
	addAddr(l.t, h.NS, netlab.UnderlayLink, netip.PrefixFrom(to, 24))
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	MTU 1500 → 1400 → 1500
func TestNewMTUOfTheUnderlayIsFollowed(t *testing.T) {
	t.Parallel()
	forEngines(t, labOptions{}, func(t *testing.T, l *lab) {
		c := l.talk()
		for _, mtu := range []int{1400, 1500} {
			for i, d := range l.daemons {
				testkit.Must(t, l.Hosts[i].NS.Netlink().LinkSetMTU(l.underlayLink(i), mtu))
				testkit.Eventually(t, "subnet.env has the MTU of the device", func() bool {
					return strings.Contains(d.env(), fmt.Sprintf("FLANNEL_MTU=%d\n", mtu-28))
				})
			}
			for i, d := range l.daemons {
				d.waitReady()
				dev, err := l.Hosts[i].NS.Netlink().LinkByName("flannel0")
				testkit.Must(t, err)
				if got := dev.Attrs().MTU; got != mtu-28 || d.status().Underlay.MTU != mtu {
					t.Errorf("MTU %d: the device has %d, status says %+v", mtu, got, d.status().Underlay)
				}
			}
			testkit.Must(t, l.SetPodMTU(mtu-28))
			if err := ping(l.pod(0), l.pod(1).Addr, mtu-28); err != nil {
				t.Errorf("MTU %d: the largest packet: %v", mtu, err)
			}
			c.goesOn(t)
		}
		if n := strings.Count(l.daemons[0].stderr.String(), `msg="interface has changed"`); n != 2 {
			t.Errorf("%d log lines about 2 changes", n)
		}
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	172.31.9.11 → 172.31.9.21
func TestNewAddressOfTheUnderlayIsFollowed(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"interface first", "lease first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{})
			c := l.talk()
			env := l.daemons[0].env()
			to := netip.MustParseAddr("172.31.9.21")
			was := l.Hosts[0].Addr
			announce := func() {
				l.Hosts[0].Addr = to
				l.setLeases(l.leases())
			}
			if order == "lease first" {
				announce()
				testkit.Eventually(t, "the daemon sees that its lease belongs to another node", func() bool { return l.daemons[0].status().Restart != "" })
				l.Hosts[0].Addr = was
				l.moveHost(0, to)
			} else {
				l.moveHost(0, to)
				l.daemons[0].waits("172.31.9.21")
				announce()
			}
			testkit.Eventually(t, "the lease has the new address", func() bool {
				d := l.daemons[0].status()
				return d.Waiting == "" && d.Restart == "" && d.Lease.PublicIP == to && d.Underlay.IPv4 == to
			})
			testkit.Eventually(t, "the peer has the new address", func() bool { return l.daemons[1].status().Dataplane.Peers[0].PublicIP == to })
			if err := ping(l.pod(1), l.pod(0).Addr, 1472); err != nil {
				t.Error(err)
			}
			c.goesOn(t)
			if got := l.daemons[0].env(); got != env {
				t.Errorf("subnet.env was\n%s\nand is\n%s", env, got)
			}
			const line = `was="eth0 (172.31.9.11, fd00:172:31:9::11, MTU 1500)" now="eth0 (172.31.9.21, fd00:172:31:9::11, MTU 1500)"`
			if log := l.daemons[0].stderr.String(); strings.Count(log, line) != 1 {
				t.Errorf("want one line with %s", line)
			}
		})
	}
}

// pod-a ── host a ─── ✂ ────── host b ── pod-b
func TestInterfaceDownAndUpIsWaitedFor(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	c := l.talk()
	d, nl := l.daemons[0], l.Hosts[0].NS.Netlink()
	testkit.Must(t, nl.LinkSetDown(l.underlayLink(0)))
	d.waits("interface eth0 is down; set it up with 'ip link set eth0 up'")
	testkit.Must(t, nl.LinkSetUp(l.underlayLink(0)))
	// The kernel has kept only the IPv4 address, which is enough.
	d.waitReady()
	if err := ping(l.pod(0), l.pod(1).Addr, 1472); err != nil {
		t.Error(err)
	}
	c.goesOn(t)
	addAddr(t, l.Hosts[0].NS, netlab.UnderlayLink, netip.PrefixFrom(l.Hosts[0].Addr6, 64))
	testkit.Eventually(t, "the IPv6 address is in use again", func() bool {
		doc := d.status()
		return doc.Waiting == "" && doc.Underlay.IPv6 == l.Hosts[0].Addr6
	})
	c.goesOn(t)
}

// pod-a ── host a ─── ✂ ────── host b ── pod-b
//
//	both ends deleted and recreated
func TestRecreatedInterfaceIsFollowed(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	c := l.talk()
	testkit.Must(t, l.Hosts[0].NS.Netlink().LinkDel(l.underlayLink(0)))
	for _, d := range l.daemons {
		d.waits("interface eth0 is gone")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = netlab.UnderlayLink, 1400
	testkit.Must(t, l.Hosts[0].NS.Netlink().LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: netlab.UnderlayLink, PeerNamespace: netlink.NsFd(l.Hosts[1].NS.FD()), PeerMTU: 1400,
	}))
	for i, h := range l.Hosts {
		testkit.Must(t, h.NS.Netlink().LinkSetUp(l.underlayLink(i)))
		addAddr(t, h.NS, netlab.UnderlayLink, netip.PrefixFrom(h.Addr, 24))
	}
	for _, d := range l.daemons {
		d.waitReady()
		if env := d.env(); !strings.Contains(env, "FLANNEL_MTU=1372\n") {
			t.Errorf("subnet.env:\n%s", env)
		}
	}
	testkit.Must(t, l.SetPodMTU(1372))
	if err := ping(l.pod(0), l.pod(1).Addr, 1372); err != nil {
		t.Error(err)
	}
	c.goesOn(t)
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	.11 goes, and the default route with it; .21 comes; the route comes
func TestInterfaceOfTheDefaultRouteIsFollowed(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d, nl := l.daemons[0], l.Hosts[0].NS.Netlink()
	d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--iface=") })
	through := func() {
		testkit.Must(t, nl.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: l.Hosts[1].Addr.AsSlice()}))
	}
	through()
	l.start()
	c := l.talk()
	to := netip.MustParseAddr("172.31.9.21")
	l.moveHost(0, to)
	l.setLeases(l.leases())
	d.waits("interface eth0 no longer has the address 172.31.9.11")
	testkit.Eventually(t, "the log says why no interface can be used", func() bool {
		return strings.Contains(d.stderr.String(), `msg="no other usable interface" error="choose interface: there is no default route;`)
	})
	through()
	d.waitReady()
	if got := d.status().Underlay; got.IPv4 != to || got.Why != "default route" {
		t.Errorf("underlay: %+v", got)
	}
	c.goesOn(t)
	if n := strings.Count(d.stderr.String(), "no other usable interface"); n != 1 {
		t.Errorf("%d log lines about it, want 1", n)
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	the default route of host a comes after the start
func TestDefaultRouteIsWaitedForAtTheStart(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--iface=") })
	d.args = append(d.args, "--healthz-port=8081")
	d.start()
	testkit.Eventually(t, "the log says what the daemon waits for", func() bool {
		return strings.Contains(d.stderr.String(), `msg="no interface to the other nodes yet, waiting"`)
	})
	d.waits("an interface to the other nodes: choose interface: there is no default route; this host has eth0 (172.31.9.11")
	if code, body, err := l.get("/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("/healthz: %d %q %v", code, body, err)
	}
	if code, body, err := l.get("/readyz"); err != nil || code != http.StatusServiceUnavailable || !strings.Contains(body, "there is no default route") {
		t.Errorf("/readyz: %d %q %v", code, body, err)
	}
	testkit.Must(t, l.Hosts[0].NS.Netlink().RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: l.Hosts[1].Addr.AsSlice()}))
	d.waitReady()
	l.daemons[1].start()
	l.daemons[1].waitReady()
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1000))
}
