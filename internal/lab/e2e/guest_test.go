package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/twillnet/twill/internal/lab/guest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// kernel is one that a node in a guest can have.
type kernel struct {
	version, arch string
	// What status reports about the offloads.
	tunOffload, tunGROUDP, udpGRO string
	// How UDP goes from the network into the TUN device.
	udpWrite   size
	kernelPath string // what status reports about it
	memory     int    // MiB, see guest.Config
}

var (
	linux61 = kernel{
		version: "6.1", arch: runtime.GOARCH,
		tunOffload: "granted: CSUM TSO4 TSO6 TSO_ECN; USO needs Linux 6.2",
		tunGROUDP:  "refused: the TUN device carries no UDP super-packets",
		udpGRO:     "granted: UDP_GRO",
		udpWrite:   single,
		kernelPath: "granted: BPF programs attached by clsact",
	}
	otherKernels = []kernel{
		linux61,
		linux61.of("arm64"),
		linux61.of("arm").with(128),
		{
			version: "5.10", arch: runtime.GOARCH,
			tunOffload: linux61.tunOffload,
			tunGROUDP:  linux61.tunGROUDP,
			udpGRO:     "refused: UDP_GRO needs Linux 5.12",
			udpWrite:   single,
			kernelPath: "refused: self-test: requires Linux 5.13 or later",
		},
		{
			version: "6.12", arch: runtime.GOARCH,
			tunOffload: "granted: CSUM TSO4 TSO6 TSO_ECN USO4 USO6",
			tunGROUDP:  "granted: UDP",
			udpGRO:     linux61.udpGRO,
			udpWrite:   trains,
			kernelPath: "granted: BPF programs attached by TCX",
			memory:     128,
		},
		{
			version: newest, arch: runtime.GOARCH,
			tunOffload: "granted: CSUM TSO4 TSO6 TSO_ECN USO4 USO6",
			tunGROUDP:  "granted: UDP",
			udpGRO:     linux61.udpGRO,
			udpWrite:   trains,
			kernelPath: "granted: BPF programs attached by TCX",
		},
	}
)

// newest is whichever kernel is the latest of Debian's backports.
const newest = "newest"

// of is the kernel for another architecture.
func (k kernel) of(arch string) kernel {
	k.arch = arch
	return k
}

// with is the kernel in a guest with so much memory, in MiB.
func (k kernel) with(memory int) kernel {
	k.memory = memory
	return k
}

// guestNode is a node with a kernel of its own. Its pod is a namespace of this
// machine.
type guestNode struct {
	*guest.Guest
	t testing.TB
}

// bootNode boots a guest in the place of h, with twilld and twill in it and what
// files names besides. Of the kernel's modules it has those that are named.
func bootNode(t testing.TB, k kernel, h *netlab.Host, files map[string]string, modules ...string) *guestNode {
	t.Helper()
	image, err := guest.Linux(k.version, k.arch)
	testkit.Must(t, err)
	c := guest.Config{
		Image: image, Modules: modules, Host: h, Memory: k.memory,
		Files: map[string]string{
			"/usr/sbin/twilld": builtFor(t, k.arch, "twilld", "./cmd/twilld"),
			"/usr/sbin/twill":  builtFor(t, k.arch, "twill", "./cmd/twill"),
		},
	}
	for name, from := range files {
		c.Files[name] = from
	}
	n := &guestNode{guest.Boot(t, c), t}
	if got := n.run("uname -r"); k.version != newest && !strings.HasPrefix(got, k.version+".") {
		t.Fatalf("the guest has Linux %s, want %s", got, k.version)
	}
	// Before Boot's own cleanup, the guest still runs.
	t.Cleanup(func() {
		if t.Failed() {
			log, err := n.Run("cat /tmp/twilld.log; twill status")
			t.Logf("log and status of twilld in the guest (error: %v):\n%s", err, log)
		}
	})
	return n
}

// builtFor returns the path of a command of this module, built for an
// architecture.
func builtFor(t testing.TB, arch, name, pkg string) string {
	t.Helper()
	switch {
	case arch != runtime.GOARCH:
	case name == "twilld":
		return bin(name)
	default:
		return built(t, name, pkg)
	}
	name += "-" + arch
	once, _ := buildOnce.LoadOrStore(name, sync.OnceValue(func() error {
		// As "make test-cross" builds, which has left most of it in the cache.
		cmd := exec.Command("go", "build", "-o", bin(name), pkg)
		cmd.Dir = filepath.Join("..", "..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch, "GOARM=6")
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("build %s for %s: %w\n%s", pkg, arch, err, out)
		}
		return err
	}))
	testkit.Must(t, once.(func() error)())
	return bin(name)
}

// launch starts twilld. It returns when the shell's child has become twilld, so that
// it can be found by name.
func (n *guestNode) launch(flags ...string) {
	n.t.Helper()
	n.run("twilld --iface=" + netlab.UnderlayLink + " " + noRules + " " + strings.Join(flags, " ") + " >/tmp/twilld.log 2>&1 & " +
		`until [ "$(cat /proc/$!/comm)" = twilld ]; do sleep 0.1; done`)
}

// start is launch, and waits until twilld is ready. subnet.env must not have an
// MTU from an earlier run.
func (n *guestNode) start(flags ...string) {
	n.t.Helper()
	n.launch(flags...)
	n.eventually("twilld is ready", func() bool {
		raw, err := n.Run("grep FLANNEL_MTU /run/flannel/subnet.env && twill status --json")
		return err == nil && !strings.Contains(raw, `"waiting"`)
	})
}

// stop ends twilld and waits for that.
func (n *guestNode) stop() {
	n.t.Helper()
	n.run("kill $(pidof twilld); while pidof twilld; do sleep 0.1; done")
}

// eventually waits for a condition while twilld runs.
func (n *guestNode) eventually(what string, cond func() bool) {
	n.t.Helper()
	testkit.Eventually(n.t, "in the guest: "+what, func() bool {
		n.run("pidof twilld") // not one that has ended
		return cond()
	})
}

// run runs a command that must not fail.
func (n *guestNode) run(line string) string {
	n.t.Helper()
	out, err := n.Run(line)
	if err != nil {
		n.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// status asks the daemon; it must be running.
func (n *guestNode) status() *status.Document {
	n.t.Helper()
	doc := new(status.Document)
	raw := n.run("twill status --json")
	if err := json.Unmarshal([]byte(raw), doc); err != nil {
		n.t.Fatalf("status of twilld in the guest: %v\n%s", err, raw)
	}
	return doc
}

// pod-a ── host a, this kernel ────────── guest, another ── pod-b
//
// Each guest has one CPU, and first the engine with offloads, then the plain one, then the
// kernel path, or what takes its place.
func TestNodeWithAnotherKernelTalksToOneWithThis(t *testing.T) {
	t.Parallel()
	for _, k := range otherKernels {
		t.Run("Linux "+k.version+" on "+k.arch, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{idle: true})
			announced := filepath.Join(t.TempDir(), "announced.json")
			writeLeases(t, announced, l.announced())
			n := bootNode(t, k, l.Hosts[1], map[string]string{"/etc/twill/leases.json": l.leaseFile, announcedFile: announced},
				"tun", "veth", "sch_ingress", "cls_bpf")
			l.daemons[0].start()
			l.daemons[0].waitReady()
			n.start("--lease-file=/etc/twill/leases.json", metricsFlag)
			testkit.Must(t, l.SetPodMTU(l.daemons[0].status().Dataplane.MTU()))
			expectOffloads(t, n, k)
			forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) { expectTraffic(t, l, n, k, addr) })
			t.Logf("memory of twilld: %s", n.run("grep VmRSS /proc/$(pidof twilld)/status"))

			n.stop()
			n.start(append(plainFlags, "--lease-file=/etc/twill/leases.json")...)
			expectPlain(t, l, n)

			n.stop()
			expectKernelPath(t, l, n, k)
		})
	}
}

// expectOffloads checks what a node reports about its kernel, in status and on the
// page for people.
func expectOffloads(t *testing.T, n *guestNode, k kernel) {
	t.Helper()
	dp := n.status().Dataplane
	if tun := dp.TUN(); tun == nil || tun.Kind != status.KindOffload || tun.MTU != 1472 {
		t.Errorf("devices %+v, want one with super-packets and MTU 1472", dp.Devices)
	}
	got := make(map[string]string)
	for _, o := range dp.Offloads {
		if o.InForce != strings.HasPrefix(o.Why, "granted: ") {
			t.Errorf("%+v: want it in force exactly if it was granted", o)
		}
		got[o.Name] = o.Why
	}
	page := testkit.Unwrapped(n.run("twill status"))
	for name, want := range map[string]string{
		"tun-offload": k.tunOffload,
		"tun-gro":     "granted: TCP",
		"tun-gro-udp": k.tunGROUDP,
		"udp-gso":     "granted: UDP_SEGMENT",
		"udp-gro":     k.udpGRO,
	} {
		if !strings.HasPrefix(got[name], want) || !strings.Contains(page, want) {
			t.Errorf("%s: %q, want %q, and on the page:\n%s", name, got[name], want, page)
		}
	}
}

// expectTraffic moves packets between the pods of host a and of the guest, whose
// address is addr, in both directions. UDP leaves the guest's pod one by one in
// any case: a train is cut before its network card, which has no USO.
func expectTraffic(t *testing.T, l *lab, n *guestNode, k kernel, addr netip.Addr) {
	t.Helper()
	tcp := func(from, to *netlab.Pod, addr netip.Addr) error {
		return streams{flows: 2, up: 8 << 20}.run(from, to, addr)
	}
	for _, into := range []bool{true, false} {
		from, to, addr, name, udp := l.pod(0), l.pod(1), addr, "into the guest", k.udpWrite
		if !into {
			from, to, addr, name, udp = to, from, ofFamily(from, addr), "out of the guest", single
		}
		if err := ping(from, addr, 1472); err != nil {
			t.Errorf("ping %s, as large as the MTU: %v", name, err)
		}
		for _, c := range []struct {
			what string
			load func(from, to *netlab.Pod, addr netip.Addr) error
			want size
		}{{"TCP", tcp, trains}, {"UDP", segmented, udp}} {
			before, got := n.tunBatches(into), batches{}
			testkit.Eventually(t, fmt.Sprintf("%s %s: %s in calls on the TUN device", c.what, name, c.want), func() bool {
				if err := c.load(from, to, addr); err != nil {
					t.Fatalf("%s %s: %v", c.what, name, err)
				}
				got = n.tunBatches(into).minus(before)
				return c.want.met(got)
			})
			if c.want.broken(got) {
				t.Errorf("%s %s: %.0f of %.0f calls on the TUN device moved trains, want %s", c.what, name, got.trains, got.calls, c.want)
			}
		}
	}
}

// expectPlain checks that a node with the plain engine talks to one with the other,
// both ways.
func expectPlain(t *testing.T, l *lab, n *guestNode) {
	t.Helper()
	if tun := n.status().Dataplane.TUN(); tun == nil || tun.Kind != status.KindPlain {
		t.Errorf("devices %+v, want a plain one", n.status().Dataplane.Devices)
	}
	a, b := l.pod(0), l.pod(1)
	for _, addr := range []netip.Addr{b.Addr, b.Addr6} {
		if err := (streams{flows: 2, up: 1 << 20, down: 1 << 20}).run(a, b, addr); err != nil {
			t.Errorf("plain engine, TCP to %s: %v", addr, err)
		}
	}
}

// tunBatches counts the calls on the TUN device since twilld started: writes of
// what has come from the network into the node, or reads of what leaves it.
func (n *guestNode) tunBatches(into bool) batches {
	n.t.Helper()
	const metric = "twill_tun_batch_packets"
	// The whole page would take long on a serial line.
	page := n.run("wget -q -O - http://127.0.0.1:9100/metrics | grep -E '^" + metric + "_(count|bucket.*le=.1.})'")
	if into {
		return batchesOf(n.t, page, metric, "rx")
	}
	return batchesOf(n.t, page, metric, "tx")
}

// docs/udp-backend.md lists the guests.
func TestKernelsInTheManualAreThoseOfTheTests(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "udp-backend.md"))
	testkit.Must(t, err)
	_, table, _ := strings.Cut(string(page), "| Linux | for | memory | engines | `--kernel-path` |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	if rows := strings.Count(table, "\n"); rows != len(otherKernels) {
		t.Errorf("the table has %d kernels, want %d", rows, len(otherKernels))
	}
	for _, k := range otherKernels {
		version, arch, memory := k.version, k.arch, k.memory
		if version == newest {
			version = "newest of the backports"
		}
		if arch == runtime.GOARCH {
			arch = "amd64" // where the table was made
		}
		if memory == 0 {
			memory = guest.Memory
		}
		path := strings.NewReplacer("granted: BPF programs attached by ", "", "self-test: requires Linux ", "needs ", " or later", "").Replace(k.kernelPath)
		row := fmt.Sprintf("| %s | %s | %d MiB | with offloads, plain | %s |", version, arch, memory, path)
		if !strings.Contains(table, row) {
			t.Errorf("the table lacks %q", row)
		}
	}
}
