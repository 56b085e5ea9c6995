package netlab_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestMain(m *testing.M) {
	if os.Getenv("NETLAB_TEST_VICTIM") != "" {
		victim()
		return
	}
	netlabtest.Main(m)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestDoRunsInsideTheNamespaceAndLeavesTheProcessOutside(t *testing.T) {
	ns := netlabtest.Namespace(t, "inner")
	before := inode(t, "/proc/self/ns/net")
	for range 20 {
		if err := ns.Do(func() error {
			if got := inode(t, "/proc/thread-self/ns/net"); got == before {
				t.Error("Do ran in the process's own namespace")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if got := inode(t, "/proc/self/ns/net"); got != before {
		t.Error("the main thread has changed its namespace")
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	inside := 0
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st) == nil && st.Ino != before {
			inside++
		}
	}
	if inside > 3 { // the one that forks, and perhaps one that is just ending
		t.Errorf("%d threads are inside the namespace", inside)
	}
}

func TestDoReturnsTheErrorAndNoticesAnEndedGoroutine(t *testing.T) {
	ns := netlabtest.Namespace(t, "inner")
	if err := ns.Do(func() error { return io.ErrClosedPipe }); err != io.ErrClosedPipe {
		t.Errorf("got %v", err)
	}
	if err := ns.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("no error although the function never returned")
	}
}

func TestSysctlsAreTheNamespacesOwn(t *testing.T) {
	one, two := netlabtest.Namespace(t, "one"), netlabtest.Namespace(t, "two")
	const key = "net/ipv4/ip_default_ttl"
	if err := one.Sysctl(key, "33"); err != nil {
		t.Fatal(err)
	}
	read := func(ns *netlab.Namespace) (value string) {
		if err := ns.Do(func() error {
			b, err := os.ReadFile("/proc/sys/" + key)
			value = strings.TrimSpace(string(b))
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return value
	}
	if got := read(one); got != "33" {
		t.Errorf("one: %s", got)
	}
	if got := read(two); got == "33" {
		t.Error("two has it as well")
	}
	if err := one.Sysctl("net/ipv4/no_such_key", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown key: %v", err)
	}
}

func TestCommandRunsInsideAndDiesWithTheNamespace(t *testing.T) {
	netlabtest.Root(t)
	ns, err := netlab.New("inner")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	out, err := ns.Command(t.Context(), "cat", "/proc/net/dev").Output()
	if err != nil {
		t.Fatal(err)
	}
	if links := strings.Count(string(out), ":"); links != 1 {
		t.Errorf("a new namespace has lo only, the process saw\n%s", out)
	}
	if err := ns.Command(t.Context(), "false").Run(); err == nil || !strings.Contains(err.Error(), "false in inner") {
		t.Errorf("error of a failing command: %v", err)
	}

	cmd := ns.Command(context.Background(), "sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The thread that forked must survive a while with other work going on.
	for range 50 {
		if err := ns.Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("sleep has gone early: %v", err)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after Close: %v", err)
	}
	if err := ns.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// victim is what TestNothingIsLeftAfterSIGKILL kills: a process with a
// namespace and a link from there into the namespace it was started in.
func victim() {
	outer, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		var ns *netlab.Namespace
		if ns, err = netlab.New("victim's"); err == nil {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "inside"
			err = ns.Netlink().LinkAdd(&netlink.Veth{
				LinkAttrs: attrs, PeerName: "outside", PeerNamespace: netlink.NsFd(outer),
			})
			defer ns.Close()
		}
	}
	fmt.Println("ready", err)
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test kills it, or ends
}

func TestNothingIsLeftAfterSIGKILL(t *testing.T) {
	ns := netlabtest.Namespace(t, "observer")
	cmd := ns.Command(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "NETLAB_TEST_VICTIM=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready <nil>\n" {
		t.Fatalf("the victim prints %q, %v", line, err)
	}
	if _, err := ns.Netlink().LinkByName("outside"); err != nil {
		t.Fatalf("the victim's link: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	testkit.Eventually(t, "the killed process's namespace is removed, and its link with it", func() bool {
		_, err := ns.Netlink().LinkByName("outside")
		return errors.As(err, &netlink.LinkNotFoundError{})
	})
}

func TestNamedNamespacesAreFoundByNameUntilClosed(t *testing.T) {
	netlabtest.Root(t)
	prefix := fmt.Sprintf("netlab-test-%d-", os.Getpid())
	topo, err := netlab.NewTopology(netlab.Options{NamePrefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	defer topo.Close()
	names, err := netlab.Named(prefix)
	if err != nil {
		t.Fatal(err)
	}
	want := prefix + "a " + prefix + "b " + prefix + "pod-a " + prefix + "pod-b"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("names %s, want %s", got, want)
	}
	if err := topo.Detach(); err != nil {
		t.Fatal(err)
	}
	pod, err := netlab.OpenNamed(prefix + "pod-a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pod.Netlink().LinkByName("eth0"); err != nil {
		t.Errorf("the detached pod: %v", err)
	}
	if err := pod.Close(); err != nil {
		t.Error(err)
	}
	for _, name := range names {
		if err := netlab.RemoveNamed(name); err != nil {
			t.Error(err)
		}
	}
	if names, err := netlab.Named(prefix); err != nil || len(names) > 0 {
		t.Errorf("left: %v, %v", names, err)
	}
}

// echo sends one datagram from a pod to another, which sends it back.
func echo(t *testing.T, from *netlab.Pod, to *netlab.Pod, addr netip.Addr, size int) error {
	t.Helper()
	srv, err := to.NS.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	go func() {
		buf := make([]byte, 65536)
		for {
			n, peer, err := srv.ReadFrom(buf)
			if err != nil {
				return
			}
			srv.WriteTo(buf[:n], peer)
		}
	}()
	conn, err := from.NS.Dial(t.Context(), "udp", srv.LocalAddr().(*net.UDPAddr).AddrPort().String())
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, size)
	// The first ones may be lost, while neighbours are looked up.
	testkit.Within(testkit.Patience, func() bool {
		conn.SetDeadline(time.Now().Add(time.Second))
		if _, err = conn.Write(buf); err == nil {
			_, err = conn.Read(buf)
		}
		return err == nil
	})
	return err
}

func TestPodsReachEachOtherOnceAPathIsMade(t *testing.T) {
	paths := map[string]struct{ up, down func(*netlab.Topology) error }{
		"vxlan":   {(*netlab.Topology).AddVXLAN, (*netlab.Topology).DelVXLAN},
		"host-gw": {(*netlab.Topology).AddHostGW, (*netlab.Topology).DelHostGW},
	}
	for _, opts := range []netlab.Options{
		{},
		{Wire: netlab.MTU, MTU: 1400},
		{Hosts: 3, Pods: 2},
		{Hosts: 3, Wire: netlab.MTU},
		{Impair: &netlab.Impairment{}},
	} {
		t.Run(fmt.Sprintf("%+v", opts), func(t *testing.T) {
			topo := netlabtest.New(t, opts)
			first, last := topo.Hosts[0].Pods[0], topo.Hosts[len(topo.Hosts)-1].Pods[len(topo.Hosts[0].Pods)-1]
			for name, path := range paths {
				if err := path.up(topo); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				for _, addr := range []netip.Addr{last.Addr, last.Addr6} {
					if err := echo(t, first, last, addr, 3000); err != nil {
						t.Errorf("%s: %s: %v", name, addr, err)
					}
				}
				if err := path.down(topo); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if _, err := first.NS.Dial(t.Context(), "tcp", netip.AddrPortFrom(last.Addr, 9).String()); !errors.Is(err, unix.ENETUNREACH) {
					t.Errorf("%s is down, but connecting returns: %v", name, err)
				}
			}
		})
	}
}

func TestMTUWireCutsWhatLeavesAndMergesWhatArrives(t *testing.T) {
	topo := netlabtest.New(t, netlab.Options{Wire: netlab.MTU})
	for _, h := range topo.Hosts {
		on, err := h.NS.Features(netlab.UnderlayLink)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			"tx-tcp-segmentation": false, "tx-tcp6-segmentation": false, "tx-udp-segmentation": false,
			"tx-udp_tnl-segmentation": false, "tx-generic-segmentation": false,
			"rx-gro": true, "tx-checksum-ip-generic": true,
		} {
			if got, ok := on[name]; !ok || got != want {
				t.Errorf("%s: %s is %t (known: %t)", h.NS, name, got, ok)
			}
		}
	}
}
