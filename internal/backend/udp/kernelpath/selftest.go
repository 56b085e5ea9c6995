//go:build !nobpf

package kernelpath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/host/ethtool"
	"github.com/twillnet/twill/tun"
)

// SelfTest reports whether the path works with this kernel and the privileges of this
// process. It creates two nodes, in network namespaces that end with the test, which
// exchange TCP streams and datagrams of all sizes, IPv4 and IPv6, in both directions:
//
//	node 1 ── TUN ── eth0 ════ veth ════ eth0 ── TUN ── node 2
//
// Nothing reads the TUN devices: what arrives was carried by the programs.
func SelfTest(ctx context.Context) error {
	if err := selfTest(ctx); err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	return nil
}

const (
	// stepLimit is how long one exchange may take. It bounds the test of a path that
	// carries nothing, and gives a slow machine enough time for each exchange.
	stepLimit = 20 * time.Second
	// replyWait is how long to wait for the answer to a datagram before the datagram is
	// sent again.
	replyWait = 200 * time.Millisecond
	// streamSize is what a TCP connection carries each way: many super-packets.
	streamSize = 1 << 20
	testPort   = 8285
	testMTU    = 1472
)

func selfTest(ctx context.Context) error {
	nodes := [2]*testNode{newTestNode(1), newTestNode(2)}
	for _, n := range nodes {
		defer n.close()
		if err := n.do(unshareNetwork); err != nil {
			return err
		}
	}
	if err := nodes[0].do(func() error { return connect(nodes[1].thread) }); err != nil {
		return err
	}
	for i, n := range nodes {
		if err := n.do(func() error { return n.open(nodes[1-i]) }); err != nil {
			return err
		}
	}
	// First super-packets cross the wire, then segments, as on a network card.
	for _, cut := range []bool{false, true} {
		if cut {
			for _, n := range nodes {
				if err := n.do(func() error { _, err := ethtool.Value("eth0", unix.ETHTOOL_STSO, 0); return err }); err != nil {
					return fmt.Errorf("turn off TSO: %w", err)
				}
			}
		}
		// Before that version the programs leave IPv6 super-packets to user space.
		ipv6 := cut || !tun.Kernel().Before(decapIPv6)
		for i, n := range nodes {
			if err := n.exchange(ctx, nodes[1-i], ipv6); err != nil {
				return err
			}
		}
	}
	return nil
}

// testNode is a node in a network namespace of its own. Its thread is discarded with it.
type testNode struct {
	number byte
	thread int // its ID
	tasks  chan func()
	device *tun.Device
	path   *Path
}

func newTestNode(number byte) *testNode {
	n := &testNode{number: number, tasks: make(chan func())}
	started := make(chan int)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		started <- unix.Gettid()
		for task := range n.tasks {
			task()
		}
	}()
	n.thread = <-started
	return n
}

// do runs f in the node's namespace.
func (n *testNode) do(f func() error) error {
	done := make(chan error)
	n.tasks <- func() { done <- f() }
	return <-done
}

func (n *testNode) close() {
	if n.path != nil {
		_ = n.path.Close()
	}
	if n.device != nil {
		_ = n.device.Close()
	}
	close(n.tasks)
}

func unshareNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	return nil
}

// connect creates a veth pair, with eth0 here and eth0 in the namespace of the thread.
func connect(thread int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsPid(thread)
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("create veth pair: %w", err)
	}
	return nil
}

// Addresses of a node: on the underlay, and of its pods (RFC 5737, RFC 2544, RFC 3849).
func (n *testNode) underlay() netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, n.number}) }

func (n *testNode) subnets() []netip.Prefix {
	v6 := netip.MustParseAddr("2001:db8::").As16()
	v6[5] = n.number
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, n.number, 0}), 24), netip.PrefixFrom(netip.AddrFrom16(v6), 48),
	}
}

// open opens the node's devices and its path, with the other node as its peer.
func (n *testNode) open(other *testNode) (err error) {
	// The programs look up routes as a router does.
	if err := writeSetting("/proc/sys/net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := up("eth0", netip.PrefixFrom(n.underlay(), 24)); err != nil {
		return err
	}
	n.device, err = tun.Open(tun.Config{Name: "flannel0", Queues: 1, Offload: tun.On, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	own := n.subnets()
	var addrs []netip.Prefix
	for _, s := range own {
		addrs = append(addrs, netip.PrefixFrom(s.Addr(), s.Addr().BitLen()))
	}
	if err := up("flannel0", addrs...); err != nil {
		return err
	}
	for _, s := range other.subnets() {
		if err := route("flannel0", s); err != nil {
			return err
		}
	}
	if n.path, err = open(Config{Tun: "flannel0", Underlay: "eth0", Local: n.underlay(), Port: testPort}); err != nil {
		return err
	}
	_, err = n.path.Set(own, []Peer{{Endpoint: other.underlay(), Subnets: other.subnets(), Kernel: true}})
	return err
}

// exchange makes the node send to the other one, which echoes what it receives.
func (n *testNode) exchange(ctx context.Context, other *testNode, ipv6 bool) error {
	for i, s := range n.subnets() {
		if s.Addr().Is6() && !ipv6 {
			continue
		}
		from, to := s.Addr(), other.subnets()[i].Addr()
		for _, step := range []struct {
			what string
			do   func(ctx context.Context, other *testNode, from, to netip.Addr) error
		}{{"datagrams", n.datagrams}, {"TCP", n.stream}} {
			ctx, cancel := context.WithTimeout(ctx, stepLimit)
			err := step.do(ctx, other, from, to)
			cancel()
			if err != nil {
				return fmt.Errorf("%s from %s to %s: %w", step.what, from, to, err)
			}
		}
	}
	return nil
}

func (n *testNode) datagrams(ctx context.Context, other *testNode, from, to netip.Addr) (err error) {
	var echo, c *net.UDPConn
	if err := other.do(func() error { echo, err = net.ListenUDP("udp", udpAddr(to)); return err }); err != nil {
		return err
	}
	defer echo.Close()
	go func() {
		b := make([]byte, testMTU)
		for {
			size, addr, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteToUDPAddrPort(b[:size], addr)
		}
	}()
	if err := n.do(func() error { c, err = net.DialUDP("udp", udpAddr(from), echo.LocalAddr().(*net.UDPAddr)); return err }); err != nil {
		return err
	}
	defer c.Close()
	for _, size := range []int{1, 64, 1000, testMTU - (40 + 8)} { // the last fills the MTU in IPv6
		if err := request(ctx, c, random(size)); err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

// request sends b repeatedly until it is returned.
func request(ctx context.Context, c *net.UDPConn, b []byte) error {
	got := make([]byte, testMTU)
	for {
		if _, err := c.Write(b); err != nil {
			return err
		}
		if err := c.SetReadDeadline(time.Now().Add(replyWait)); err != nil {
			return err
		}
		for {
			size, err := c.Read(got)
			if err == nil && bytes.Equal(got[:size], b) {
				return nil
			}
			if ctx.Err() != nil {
				return errLost
			}
			if err != nil {
				break
			}
			if size == len(b) { // otherwise it is a late answer to an earlier one
				return errDamaged
			}
		}
	}
}

var (
	errDamaged = errors.New("received data differs from sent data")
	errLost    = errors.New("no reply")
)

func (n *testNode) stream(ctx context.Context, other *testNode, from, to netip.Addr) (err error) {
	var listener *net.TCPListener
	if err := other.do(func() error { listener, err = net.ListenTCP("tcp", tcpAddr(to)); return err }); err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		deadline, _ := ctx.Deadline()
		_ = c.SetDeadline(deadline)
		_, _ = io.Copy(c, c)
	}()
	var c net.Conn
	dialer := net.Dialer{LocalAddr: tcpAddr(from)}
	if err := n.do(func() error { c, err = dialer.DialContext(ctx, "tcp", listener.Addr().String()); return err }); err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	if err := c.SetDeadline(deadline); err != nil {
		return err
	}
	sent, got := random(streamSize), make([]byte, streamSize)
	go func() { _, _ = c.Write(sent) }()
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errDamaged
	}
	return nil
}

func random(size int) []byte {
	var seed [32]byte
	copy(seed[:], strconv.Itoa(size))
	b := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

func udpAddr(a netip.Addr) *net.UDPAddr { return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)) }
func tcpAddr(a netip.Addr) *net.TCPAddr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 0)) }

// up gives the interface its addresses and sets it up.
func up(name string, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetMTU(link, map[bool]int{true: 1500, false: testMTU}[name == "eth0"])
	}
	for _, a := range addrs {
		if err == nil {
			err = netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD})
		}
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("configure interface %s: %w", name, err)
	}
	return nil
}

func route(name string, to netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(to)})
	}
	if err != nil {
		return fmt.Errorf("add route to %s: %w", to, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
