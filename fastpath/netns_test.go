package fastpath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/encap"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/metrics"
	"github.com/twillnet/twill/tun"
)

// The tests here need root. Each has a namespace of its own:
//
//	pod 10.5.1.9, fd00:5:1::9 (on lo)      other node 127.0.0.2, ::1
//	      │                                       │ a socket of the test
//	flannel0 10.5.1.0/32, MTU 1472                │
//	      │                                       │
//	   Engine ─────────────── lo ─────────────────┘
//	        127.0.0.1 or ::1

func TestMain(m *testing.M) { netlabtest.Main(m) }

const testMTU encap.TunnelMTU = 1472

// addAddr gives a link an address.
func addAddr(t *testing.T, name, prefix string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatalf("add %s to %s: %v", prefix, name, err)
	}
	// The kernel adds the local route of an IPv6 address a moment later, in a
	// worker (addrconf_dad_work).
	testkit.Eventually(t, "there is a local route to "+prefix, func() bool {
		routes, err := netlink.RouteGet(addr.IP)
		return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
	})
}

// device makes flannel0.
func device(t *testing.T, queues int, mode tun.Switch) *tun.Device {
	t.Helper()
	d, err := tun.Open(tun.Config{Name: "flannel0", Queues: queues, Offload: mode, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	link, err := netlink.LinkByName(d.Name)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(netlink.LinkSetMTU(link, int(testMTU)), netlink.LinkSetIP6AddrGenMode(link, 1), netlink.LinkSetUp(link)); err != nil {
		t.Fatal(err)
	}
	addAddr(t, "flannel0", "10.5.1.0/32")
	for _, n := range []string{"10.5.0.0/16", "fd00:5::/32"} {
		_, dst, err := net.ParseCIDR(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst}); err != nil {
			t.Fatalf("route to %s: %v", n, err)
		}
	}
	addAddr(t, "lo", "10.5.1.9/32")
	addAddr(t, "lo", "fd00:5:1::9/128")
	return d
}

// config is the config of an engine on a free port. It sends no probes, since tests
// count packets.
func config(d *tun.Device, local string) Config {
	return Config{
		Switches: Switches{MTUProbes: tun.Off},
		Device:   d, MTU: testMTU, Local: netip.MustParseAddrPort(local),
		Logger: slog.New(slog.DiscardHandler),
	}
}

func newEngine(t *testing.T, cfg Config) *Engine {
	t.Helper()
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// start runs e; stop ends it and returns its error.
func start(t *testing.T, e *Engine) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	var err error
	ended := false
	stop = func() error {
		if ended {
			return err
		}
		ended = true
		cancel()
		err = testkit.Receive(t, "Run ends", done)
		return err
	}
	t.Cleanup(func() { stop() })
	return stop
}

// receive waits for n datagrams at a socket that does not use GRO.
func receive(t *testing.T, fd, n int) (got [][]byte) {
	t.Helper()
	b := make([]byte, 1<<16)
	for range n {
		if !readable(fd, int(testkit.Patience.Milliseconds())) {
			t.Fatalf("%d of %d datagrams within %s", len(got), n, testkit.Patience)
		}
		size, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, bytes.Clone(b[:size]))
	}
	return got
}

// sendTrain sends b from fd as segments of size bytes.
func sendTrain(t *testing.T, fd int, b []byte, size int, to unix.Sockaddr) {
	t.Helper()
	if _, err := unix.SendmsgN(fd, b, sendControl(make([]byte, 0, sendControlLen), size, 0, false), to, 0); err != nil {
		t.Fatalf("send a train: %v", err)
	}
}

// TestEngineForwardsBothWays sends a train of datagrams from a pod, and one to
// it. Which offloads are used is seen in the counters: the test fails if one is
// silently not engaged.
func TestEngineForwardsBothWays(t *testing.T) {
	const count, size = 20, 1200
	for _, tt := range []struct {
		name             string
		tun, gso, gro, v tun.Switch
		local, peer      string
		pod, remote      string
	}{
		{"all offloads", tun.On, tun.On, tun.On, tun.On, "127.0.0.1", "127.0.0.2", "10.5.1.9", "10.5.2.9"},
		{"IPv6 inside", tun.On, tun.On, tun.On, tun.On, "127.0.0.1", "127.0.0.2", "fd00:5:1::9", "fd00:5:2::9"},
		{"IPv6 underlay", tun.On, tun.On, tun.On, tun.On, "::1", "fd00::2", "10.5.1.9", "10.5.2.9"},
		{"no GSO", tun.On, tun.Off, tun.On, tun.On, "127.0.0.1", "127.0.0.2", "10.5.1.9", "10.5.2.9"},
		{"no GRO", tun.On, tun.On, tun.Off, tun.On, "127.0.0.1", "127.0.0.2", "10.5.1.9", "10.5.2.9"},
		{"no merging of UDP", tun.On, tun.On, tun.On, tun.Off, "127.0.0.1", "127.0.0.2", "10.5.1.9", "10.5.2.9"},
		{"plain", tun.Off, tun.Off, tun.Off, tun.Off, "127.0.0.1", "127.0.0.2", "10.5.1.9", "10.5.2.9"},
		{"plain, IPv6 underlay", tun.Off, tun.Off, tun.Off, tun.Off, "::1", "fd00::2", "fd00:5:1::9", "fd00:5:2::9"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netlabtest.Inside(t, func(*netlab.Namespace) {
				d := device(t, 1, tt.tun)
				addAddr(t, "lo", "fd00::2/128")
				node := openUDP(t, tt.peer)
				cfg := config(d, netip.AddrPortFrom(netip.MustParseAddr(tt.local), 8285).String())
				cfg.UDPGSO, cfg.UDPGRO, cfg.TunGRO, cfg.TunGROUDP = tt.gso, tt.gro, tun.Auto, tt.v
				e := newEngine(t, cfg)
				peer := NewPeer([]netip.Prefix{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:5:2::/64")}, node.addr)
				e.SetPeers(NewPeers([]netip.Prefix{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5:1::/64")}, []*Peer{peer}))
				stop := start(t, e)

				// From the pod: the payloads arrive in packets from 10.5.1.9.
				pod := openUDP(t, tt.pod)
				dst := netip.AddrPortFrom(netip.MustParseAddr(tt.remote), 7777)
				payload := pattern(count * size)
				sendTrain(t, pod.fd, payload, size, sockaddr(dst))
				var arrived []byte
				for i, pkt := range receive(t, node.fd, count) {
					var h encap.Header
					if !encap.Parse(pkt, &h) || h.Src != pod.addr.Addr() || h.Dst != dst.Addr() {
						t.Fatalf("packet %d: % x", i, pkt[:40])
					}
					if err := verify(pkt); err != nil {
						t.Errorf("packet %d: %v", i, err)
					}
					arrived = append(arrived, pkt[h.IPLen+8:]...)
				}
				if !bytes.Equal(arrived, payload) {
					t.Error("other bytes arrive at the node")
				}

				// To the pod.
				var train []byte
				for chunk := range slices.Chunk(payload, size) {
					pkt := segment{src: tt.remote, dst: tt.pod, df: true, payload: chunk}.bytes()
					ipLen := len(pkt) - 8 - size
					binary.BigEndian.PutUint16(pkt[ipLen+2:], pod.addr.Port())
					finish(pkt, ipLen)
					train = append(train, pkt...)
				}
				engine := netip.AddrPortFrom(netip.MustParseAddr(tt.local), 8285)
				sendTrain(t, node.fd, train, len(train)/count, sockaddr(engine))
				if got := bytes.Join(receive(t, pod.fd, count), nil); !bytes.Equal(got, payload) {
					t.Error("other bytes arrive at the pod")
				}

				if err := stop(); err != nil {
					t.Error(err)
				}
				c := e.Counters()[0]
				for _, hist := range []struct {
					name   string
					h      *metrics.BatchSizes
					trains bool
				}{
					{"packets a read of the device", &c.TX.Merged, d.Granted.UDP()},
					{"packets a GSO send", &c.TX.Segments, tt.gso == tun.On},
					{"packets a GRO receive", &c.RX.Segments, tt.gro == tun.On},
					{"packets a write of the device", &c.RX.Merged, tt.v == tun.On && d.Granted.UDP() && !tun.Kernel().Before(usoThroughVXLAN)},
				} {
					if most := biggest(hist.h); (most > 1) != hist.trains {
						t.Errorf("%s: more than %v; trains wanted: %t", hist.name, most, hist.trains)
					}
				}
				if tx, rx := c.TX.Packets.Load(), c.RX.Packets.Load(); tx != count || rx != count {
					t.Errorf("counted %d out, %d in", tx, rx)
				}
				if dropped(&c.TX)+dropped(&c.RX) != 0 {
					t.Errorf("dropped %v, %v", drops(&c.TX), drops(&c.RX))
				}
				for _, s := range e.Offloads() {
					switch s.Name {
					case "busy-poll", strangerFilter: // as the machine has CPUs; has tests of its own
						continue
					case "tun-gro": // of TCP, which goes with the device
						if s.InForce != (tt.tun == tun.On) {
							t.Errorf("%+v", s)
						}
						continue
					}
					want := map[string]tun.Switch{"tun-offload": tt.tun, "tun-gro-udp": tt.v, "udp-gso": tt.gso, "udp-gro": tt.gro, "mtu-probes": tun.Off}[s.Name]
					if s.InForce != (want == tun.On) || s.Mode != want || s.Why == "" {
						t.Errorf("%+v, asked for %s", s, want)
					}
				}
			})
		})
	}
}

func TestEngineLeavesNoDescriptorAndNoGoroutine(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		d := device(t, 2, tun.Auto)
		cycle := func(mode tun.Switch) {
			cfg := config(d, "127.0.0.1:8285")
			cfg.UDPGSO, cfg.UDPGRO = mode, mode
			e, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			time.AfterFunc(time.Millisecond, cancel)
			if err := errors.Join(e.Run(ctx), e.Close(), e.Close()); err != nil {
				t.Fatal(err)
			}
		}
		cycle(tun.Off) // Go's poller opens its own once
		fds, goroutines := testkit.Descriptors(t), runtime.NumGoroutine()
		for range 25 {
			cycle(tun.Auto)
			cycle(tun.Off)
		}
		if n := testkit.Descriptors(t); n > fds {
			t.Errorf("%d descriptors before, %d after", fds, n)
		}
		testkit.Eventually(t, "no more goroutines than before", func() bool { return runtime.NumGoroutine() <= goroutines })
	})
}

func TestRefusedConfigLeavesNothing(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		d := device(t, 2, tun.Off)
		taken, err := openSocket(netip.MustParseAddrPort("127.0.0.1:8285"), false)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(taken)
		for _, tt := range []struct {
			name   string
			change func(*Config)
			err    string
			errno  error
		}{
			{"port in use", func(c *Config) { c.Local = netip.MustParseAddrPort("127.0.0.1:8285") },
				"bind UDP 127.0.0.1:8285: address already in use; another flanneld or twilld uses the port: stop it, or set another Port", unix.EADDRINUSE},
			{"address of another host", func(c *Config) { c.Local = netip.MustParseAddrPort("192.0.2.77:8285") },
				"bind UDP 192.0.2.77:8285: cannot assign requested address; the address is not on this host: choose the interface with --iface or --public-ip", unix.EADDRNOTAVAIL},
			{"merging for a plain device", func(c *Config) { c.TunGRO = tun.On },
				"--tun-gro=on: the TUN device carries no super-packets; use --tun-gro=auto", nil},
			{"merging of UDP for a plain device", func(c *Config) { c.TunGROUDP = tun.On },
				"--tun-gro-udp=on: the TUN device carries no UDP super-packets, which need Linux 6.2; use --tun-gro-udp=auto", nil},
		} {
			cfg := config(d, "127.0.0.1:8286")
			tt.change(&cfg)
			before := testkit.Descriptors(t)
			e, err := New(cfg)
			if err == nil {
				e.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.err) || tt.errno != nil && !errors.Is(err, tt.errno) {
				t.Errorf("%s: %v", tt.name, err)
			}
			if after := testkit.Descriptors(t); after != before {
				t.Errorf("%s: %d descriptors before, %d after", tt.name, before, after)
			}
		}
	})
}

// TestNoTwoEnginesShareAPort: SO_REUSEPORT, which the shards of an engine need,
// must not let another engine in.
func TestNoTwoEnginesShareAPort(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		local := netip.MustParseAddrPort("127.0.0.1:8285")
		for first := 1; first <= 3; first++ {
			fds, err := openSockets(local, first, first > 1)
			if err != nil || len(fds) != first {
				t.Fatalf("%d sockets: %v, %v", first, fds, err)
			}
			for second := 1; second <= 3; second++ {
				if more, err := openSockets(local, second, second > 1); !errors.Is(err, unix.EADDRINUSE) {
					t.Errorf("%d sockets beside %d: %v, %v", second, first, more, err)
				}
			}
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	})
}

// TestPortOfClosedSocketsIsFreeInSpiteOfAChild: until a child that this process has
// forked calls exec, it holds copies of all descriptors. Here a second descriptor stands
// for that child, and the lock that os/exec holds until then is held for it.
func TestPortOfClosedSocketsIsFreeInSpiteOfAChild(t *testing.T) {
	netlabtest.Inside(t, func(ns *netlab.Namespace) {
		local := netip.MustParseAddrPort("127.0.0.1:8285")
		for n := 1; n <= 2; n++ {
			old, err := openSockets(local, 1, false)
			testkit.Must(t, err)
			syscall.ForkLock.Lock()
			copied, err := unix.Dup(old[0])
			testkit.Must(t, err)
			closeAll(old)
			type opened struct {
				fds []int
				err error
			}
			result := make(chan opened, 1)
			go func() {
				var o opened
				o.err = ns.Do(func() (err error) { o.fds, err = openSockets(local, n, n > 1); return err })
				result <- o
			}()
			if testkit.Within(50*time.Millisecond, func() bool { return len(result) > 0 }) {
				t.Errorf("%d sockets: the call did not wait for the child", n)
			}
			unix.Close(copied)
			syscall.ForkLock.Unlock()
			o := <-result
			testkit.Must(t, o.err)
			closeAll(o.fds)
		}
	})
}

// asleep waits until all threads of a running engine, two a shard, sleep in
// poll(2) or ppoll(2). Go's runtime calls neither; the kernel function that
// /proc/self/task/*/wchan names for its epoll_wait(2) is do_epoll_wait or ep_poll.
func asleep(t *testing.T, e *Engine) {
	t.Helper()
	n := 2 * len(e.shards)
	testkit.Eventually(t, fmt.Sprintf("%d threads sleep", n), func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/wchan")
		testkit.Must(t, err)
		sleeping := 0
		for _, task := range tasks {
			wchan, _ := os.ReadFile(task) // a thread may have ended
			if s := string(wchan); strings.Contains(s, "poll") && !strings.Contains(s, "epoll") && !strings.Contains(s, "ep_poll") {
				sleeping++
			}
		}
		return sleeping == n
	})
}

func TestRunEndsWhenItsDeviceIsDeleted(t *testing.T) {
	for _, mode := range []tun.Switch{tun.On, tun.Off} {
		netlabtest.Inside(t, func(*netlab.Namespace) {
			e := newEngine(t, config(device(t, 2, mode), "127.0.0.1:8285"))
			done := make(chan error, 1)
			go func() { done <- e.Run(context.Background()) }()
			asleep(t, e)
			link, err := netlink.LinkByName("flannel0")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			if err := testkit.Receive(t, "Run ends", done); !errors.Is(err, unix.EBADFD) || !strings.Contains(err.Error(), "deleted") {
				t.Errorf("offload %s: %v", mode, err)
			}
		})
	}
}

func TestCancelWakesEveryThreadOfRun(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		e := newEngine(t, config(device(t, 4, tun.Auto), "127.0.0.1:8285"))
		stop := start(t, e)
		asleep(t, e)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

func TestOffloadsTellWhatWasRefusedAtRunTime(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		cfg := config(device(t, 2, tun.Auto), "127.0.0.1:8285")
		cfg.PartialAnnounced, cfg.TunGROUDP = true, tun.Off
		e := newEngine(t, cfg)
		e.shards[1].gsoRefused.Store(uint32(unix.EIO))
		e.shards[0].mergeRefused.Store(true)
		want := map[string]string{
			"udp-gso":     "refused at run time: sendmsg on shard 2 of 2: input/output error",
			"tun-gro":     "refused at run time: write on shard 1 of 2: invalid argument",
			"tun-gro-udp": "turned off by --tun-gro-udp",
			"mtu-probes":  "turned off by --mtu-probes",

			"brief-batches": "refused: each thread has only one queue",
			"bulk-queue":    "refused: each thread has only one queue",
		}
		for _, s := range e.Offloads() {
			why, refused := want[s.Name]
			if s.InForce == refused || refused && s.Why != why {
				t.Errorf("%+v", s)
			}
		}
		if !e.states[3].InForce {
			t.Error("what was probed has changed")
		}
	})
}

func TestKernelHasEachFeatureFromItsVersionOn(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		for _, f := range Features {
			if err := f.Verify(); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTrainsArriveWholeOrCut(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		for _, addr := range []string{"127.0.0.1", "::1"} {
			ipv6 := addr == "::1"
			if err := probeGSO(ipv6); err != nil {
				t.Fatalf("%s: %v", addr, err)
			}
			most := maxSegmentsOld
			if !tun.Kernel().Before(featureGSO128.Since) {
				most = maxSegments
			}
			to, from := openUDP(t, addr), openUDP(t, addr)
			// Full trains are accepted, longer ones not.
			var c metrics.Direction
			shard := newShard(new(fakeQueue), newMmsgSender(newOutlets(from.fd, from.fd, ipv6)))
			s := newSends(shard.sender, newExceptions(shard), most, ipv6, &c)
			peer := NewPeer(nil, to.addr)
			put := func(i, size int) {
				s.add(peer, way{tos: 2}, append(binary.BigEndian.AppendUint64(make([]byte, 0, 256), uint64(i)), pattern(size)...))
			}
			for i := range most + 3 {
				put(i, 100)
			}
			s.flush()
			if n := c.Datagrams.Load(); n != 2 || c.Packets.Load() != uint64(most+3) || shard.gsoRefused.Load() != 0 {
				t.Errorf("%s: %d messages, %d packets, GSO refused: %v", addr, n, c.Packets.Load(), unix.Errno(shard.gsoRefused.Load()))
			}
			for i, b := range receive(t, to.fd, most+3) {
				if binary.BigEndian.Uint64(b) != uint64(i) || !bytes.Equal(b[8:], pattern(100)) {
					t.Fatalf("%s: datagram %d: % x", addr, i, b[:8])
				}
			}
			// With GRO the same comes as trains.
			if err := enableGRO(to.fd); err != nil {
				t.Fatal(err)
			}
			for i := range 10 {
				put(i, 100-i/9)
			}
			s.flush()
			receiveAll(t, newSockRX(to.fd), 1, func(b []byte, info recvInfo, src netip.Addr) {
				if len(b) != 10*108-1 || info.segment != 108 || info.tos != 2 || src != from.addr.Addr() {
					t.Errorf("%s: %d bytes from %s, %+v", addr, len(b), src, info)
				}
			})
		}
	})
}

// narrow is a route of MTU 1300 to another node on lo.
func narrow(t *testing.T, node string) {
	t.Helper()
	addAddr(t, "lo", node+"/32")
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	_, dst, _ := net.ParseCIDR(node + "/32")
	r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL,
		Scope: netlink.SCOPE_HOST, MTU: 1300}
	if err := netlink.RouteReplace(r); err != nil {
		t.Fatal(err)
	}
}

func TestPathMTU(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		narrow(t, "203.0.113.1")
		for _, tt := range []struct {
			local, peer string
			want        int
		}{{"127.0.0.1", "127.0.0.2:1", 65535}, {"127.0.0.1", "203.0.113.1:1", 1300}, {"::1", "[::1]:1", 65536}} {
			got, err := pathMTU(netip.MustParseAddr(tt.local), NewPeer(nil, netip.MustParseAddrPort(tt.peer)))
			if err != nil || got != tt.want {
				t.Errorf("%s to %s: %d, %v; want %d", tt.local, tt.peer, got, err, tt.want)
			}
		}
		if _, err := pathMTU(netip.MustParseAddr("127.0.0.1"), peerB); err == nil {
			t.Error("a path to where no route leads")
		}
	})
}

// TestPacketTooBigForThePath: behind flannel0 of MTU 1472 is a path of 1300. A
// packet that may not be fragmented comes back as an ICMP error that the kernel
// accepts; one that may is fragmented outside.
func TestPacketTooBigForThePath(t *testing.T) {
	for _, gso := range []tun.Switch{tun.On, tun.Off} {
		t.Run("gso "+gso.String(), func(t *testing.T) {
			netlabtest.Inside(t, func(*netlab.Namespace) {
				narrow(t, "203.0.113.1")
				cfg := config(device(t, 1, tun.Auto), "127.0.0.1:8285")
				cfg.UDPGSO = gso
				e := newEngine(t, cfg)
				node := openUDP(t, "203.0.113.1")
				e.SetPeers(NewPeers(own, []*Peer{NewPeer(peerB.Subnets, node.addr)}))
				x := newTX(e.shards[0], make([]byte, normalFootprint.txArena))
				pod := openUDP(t, "10.5.1.9")
				dst := netip.MustParseAddrPort("10.5.2.9:7777")
				send := func() error { return unix.Sendto(pod.fd, pattern(1444), 0, sockaddr(dst)) }
				if err := send(); err != nil {
					t.Fatal(err)
				}
				// On this thread, since it asks for the path in its namespace.
				x.resolver.use(e.Peers())
				wake := waiterFor(x.shard.stop, x.shard.queue.FD(), unix.POLLIN)
				for _, _ = wake.wait(); x.c.Packets.Load() == 0; x.sends.flush() {
					if _, _, errno := x.batch(false); errno != unix.EAGAIN {
						t.Fatal(errno)
					}
				}
				// It is delivered all the same, since nothing sends it again.
				if got := receive(t, node.fd, 1); len(got[0]) != 1472 || dropped(x.c) != 0 {
					t.Errorf("%d bytes arrive; %v", len(got[0]), drops(x.c))
				}
				if err := send(); err != unix.EMSGSIZE {
					t.Errorf("the pod's next packet: %v", err)
				}
				mtu, err := pathMTU(pod.addr.Addr(), NewPeer(nil, dst))
				if want := int(encap.UnderlayMTU(1300).Tunnel(e.shards[0].local)); err != nil || mtu != want {
					t.Errorf("the pod's path has MTU %d, %v; want %d", mtu, err, want)
				}

				// The same without DF.
				x.c.Packets.Store(0)
				pkt := segment{src: "10.5.1.9", dst: "10.5.2.9", payload: pattern(1444)}.bytes()
				handle(x, read(tun.Header{}, pkt))
				x.sends.flush()
				if n := x.c.Packets.Load(); n != 1 || dropped(x.c) != 0 {
					t.Errorf("without DF: %d sent, %v", n, drops(x.c))
				}
				if got := receive(t, node.fd, 1); !bytes.Equal(got[0], pkt) {
					t.Errorf("without DF: %d bytes arrive, want %d", len(got[0]), len(pkt))
				}

				// With DF again: the socket no longer fragments.
				df := segment{src: "10.5.1.9", dst: "10.5.2.9", df: true, flags: tcpACK, payload: pattern(1432)}.bytes()
				handle(x, read(tun.Header{}, df))
				x.sends.flush()
				if n := x.c.Drops[metrics.DropTooBig].Load(); n != 1 || x.c.Packets.Load() != 1 {
					t.Errorf("with DF afterwards: %d sent, %v", x.c.Packets.Load(), drops(x.c))
				}
			})
		})
	}
}

// TestWakingAClosedEngineTouchesNoDescriptor: the function that a context calls
// when it is done may run after the engine was closed, when the number of its
// eventfd has another owner.
func TestWakingAClosedEngineTouchesNoDescriptor(t *testing.T) {
	netlabtest.Inside(t, func(*netlab.Namespace) {
		e := newEngine(t, config(device(t, 1, tun.Auto), "127.0.0.1:8285"))
		number := e.stop
		other, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(other)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(other, number, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(number)
		e.wakeAll()
		if n, err := unix.Read(other, make([]byte, 8)); err != unix.EAGAIN {
			t.Errorf("%d bytes were written to the descriptor's new owner (%v)", n, err)
		}
	})
}
