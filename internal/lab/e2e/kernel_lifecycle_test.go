package e2e

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

var kernelEngine = engine{"kernel", [][]string{kernelFlags}}

// exchangeTCP moves a stream each way between the pods, for both families.
func (l *lab) exchangeTCP(t *testing.T) {
	t.Helper()
	for _, addr := range []netip.Addr{l.pod(1).Addr, l.pod(1).Addr6} {
		if err := (streams{flows: 2, up: 8 << 20, down: 8 << 20}).run(l.pod(0), l.pod(1), addr); err != nil {
			t.Errorf("TCP to %s: %v", addr, err)
		}
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	twilld killed, absent, started again
func TestPodsGoOnWithoutALostPacketWhileNoDaemonRuns(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  syscall.Signal
	}{{"killed", syscall.SIGKILL}, {"stopped", syscall.SIGTERM}} {
		t.Run(tt.name, func(t *testing.T) {
			l := newKernelLab(t, labOptions{engine: kernelEngine, Options: netlab.Options{Wire: netlab.MTU}})
			l.start()
			flows := l.flows()
			goOn(t, flows)
			for _, d := range l.daemons {
				d.stop(tt.end)
			}
			goOn(t, flows)
			for _, d := range l.daemons {
				d.start()
			}
			for _, d := range l.daemons {
				d.waitReady()
			}
			goOn(t, flows)
			allArrived(t, flows)
			for _, d := range l.daemons {
				testkit.Eventually(t, "the kernel path counts packets for the new process", func() bool {
					tx, rx := kernelPackets(d.status())
					return tx > 0 && rx > 0
				})
				if drops := d.status().Drops.RX; len(drops) > 0 {
					t.Errorf("%s: received packets dropped: %v", d.ns, drops)
				}
				d.stop(tt.end)
			}
			l.exchangeTCP(t) // new connections, which may lose packets to a full queue
		})
	}
}

// Another process carries everything in user space, or no longer does, on one node after
// the other. The connections of pods survive.
//
// pod-a ── host a ──────────── host b ── pod-b
//
//	user space → kernel → user space
func TestConnectionsOutliveAChangeOfThePath(t *testing.T) {
	t.Parallel()
	l := newKernelLab(t, labOptions{engine: kernelEngine})
	with := [2][]string{l.daemons[0].args, l.daemons[1].args}
	l.daemons[0].args = append(slices.Clone(with[0]), "--kernel-path=off")
	l.start()
	held := l.talk() // the only connection from the first path to the last
	for _, step := range []struct {
		host  int
		flags []string
	}{{0, nil}, {1, []string{"--kernel-path=off"}}, {1, nil}, {0, []string{"--kernel-path=off"}}} {
		stop := l.load(l.pod(1).Addr)
		d := l.daemons[step.host]
		d.stop(syscall.SIGTERM)
		d.args = append(slices.Clone(with[step.host]), step.flags...)
		d.start()
		d.waitReady()
		testkit.Eventually(t, "the same connections continue", func() bool { return l.txPackets(step.host) > 1000 })
		stop()
		held.goesOn(t)
		if peer := d.status().Dataplane.Peers[0]; peer.Kernel != (step.flags == nil) {
			t.Errorf("%s with %q: carried by the kernel: %v", d.ns, step.flags, peer.Kernel)
		}
		l.exchangeTCP(t)
	}
}

// host a
func TestCleanUpRemovesTheKernelPath(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	before := netState(t, s.NS)
	d := newDaemon(t, s.NS, s.leaseFile, kernelFlags...)
	d.start()
	d.waitReady()
	d.stop(syscall.SIGTERM)
	if now := netState(t, s.NS); !strings.Contains(now, "flannel0-rx") {
		t.Fatalf("without a daemon the host is\n%s", now)
	}
	out, code := d.cleanUp()
	if code != 0 || !strings.Contains(out, "kernel path removed") {
		t.Errorf("exit code %d: %s", code, out)
	}
	if after := netState(t, s.NS); after != before {
		t.Errorf("the host was\n%s\nand is\n%s", before, after)
	}
	if left := pinned(t, s.NS); len(left) > 0 {
		t.Errorf("pinned: %v", left)
	}
}

// Whether a daemon runs there makes no difference: only its device counts.
//
// host a, whose namespace ends    host b
func TestPinsOfANamespaceThatEndedAreRemovedByTheNextStartAndByACleanUp(t *testing.T) {
	t.Parallel()
	living, other := newSite(t), newSite(t)
	alive := startDaemon(t, living.NS, living.leaseFile, kernelFlags...)
	alive.stop(syscall.SIGKILL)
	t.Cleanup(func() { alive.cleanUp() })
	d := newDaemon(t, other.NS, other.leaseFile, kernelFlags...)
	t.Cleanup(func() { d.cleanUp() })
	for _, tt := range []struct {
		name   string
		remove func()
	}{
		{"start", func() { d.start(); d.waitReady(); d.stop(syscall.SIGTERM) }},
		{"clean-up", func() {
			if out, code := d.cleanUp(); code != 0 {
				t.Errorf("exit code %d: %s", code, out)
			}
		}},
	} {
		var pins string
		t.Run("a namespace before the "+tt.name, func(t *testing.T) {
			s := newSite(t)
			startDaemon(t, s.NS, s.leaseFile, kernelFlags...).stop(syscall.SIGTERM)
			pins = pinDir(t, s.NS)
			if _, err := os.Stat(pins); err != nil {
				t.Fatal(err)
			}
		})
		// The kernel takes a namespace down in the background.
		testkit.Eventually(t, pins+" is removed by a "+tt.name, func() bool {
			tt.remove()
			_, err := os.Stat(pins)
			return os.IsNotExist(err)
		})
		if len(pinned(t, living.NS)) == 0 {
			t.Errorf("the %s removes what a daemon left in a namespace that still exists", tt.name)
		}
	}
}

// pinDir returns where the kernel path pins its objects for a namespace.
func pinDir(t *testing.T, ns *netlab.Namespace) (dir string) {
	t.Helper()
	testkit.Must(t, ns.Do(func() error {
		link, err := os.Readlink("/proc/thread-self/ns/net") // net:[4026531840]
		dir = "/sys/fs/bpf/twill/" + strings.NewReplacer(":[", "-", "]", "").Replace(link)
		return err
	}))
	return dir
}

// pinned returns what the kernel path has pinned for the namespace.
func pinned(t *testing.T, ns *netlab.Namespace) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(pinDir(t, ns))
	if !os.IsNotExist(err) {
		testkit.Must(t, err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	no BPF
func TestPodsTalkWhereTheKernelPathIsRefused(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, lack, says string }{
		{"system call refused", "-offload=kernel-path", "operation not permitted"},
		{"no BPF file system", "-dir=/sys/fs", "/sys/fs/bpf"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newKernelLab(t, labOptions{engine: engine{"kernel", [][]string{{"--kernel-path=tc"}, {"--kernel-path=tc"}}}})
			d := l.daemons[0]
			d.wrap = []string{without(t), tt.lack}
			d.start()
			if code := d.wait(); code == 0 || !strings.Contains(d.stderr.String(), tt.says) || !strings.Contains(d.stderr.String(), "--kernel-path=auto") {
				t.Errorf("exit code %d; log:\n%s", code, d.stderr)
			}
			d.args = append(d.args, "--kernel-path=auto")
			l.start()
			if o := offloadNamed(d.status(), "kernel-path"); o.InForce || !strings.Contains(o.Why, tt.says) {
				t.Errorf("status: %+v; want it not in force because of %q", o, tt.says)
			}
			if log := d.stderr.String(); strings.Count(log, "kernel path unavailable") != 1 {
				t.Errorf("log:\n%s", log)
			}
			l.exchangeTCP(t)
		})
	}
}
