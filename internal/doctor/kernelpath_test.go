package doctor

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// newKernelPatient returns a node whose kernel path is in force, for one of two peers.
func newKernelPatient(t *testing.T) *patient {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.run("ip link add eth0 type bridge && ip link add flannel0 type bridge && ip link add flannel0-rx type bridge")
	p.run("sysctl -w net.ipv4.ip_forward=1")
	p.x.Daemon.Dataplane = &status.Dataplane{
		Devices:  []status.Device{{Name: "flannel0", Kind: status.KindOffload}},
		Offloads: []status.Offload{{Name: "kernel-path", Mode: "tc", InForce: true, Why: "granted"}},
		Peers: []status.Peer{
			{PublicIP: other, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.2.0/24")}, Backend: "udp", Kernel: true},
			{PublicIP: netip.MustParseAddr("192.0.2.3"), Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.3.0/24")}, Backend: "udp"},
		},
	}
	return p
}

func TestKernelPathIsExamined(t *testing.T) {
	p := newKernelPatient(t)
	p.has("kernel-path", OK, "active for 1 of 2 udp peers")

	p.sysctl("net/ipv4/conf/eth0/forwarding", "0")
	p.repairs("kernel-path", Warn, "net/ipv4/conf/eth0/forwarding is 0")

	p.sysctl("net/ipv4/conf/flannel0-rx/rp_filter", "2")
	p.repairs("kernel-path", Bad, "the reverse path filter of flannel0-rx is 2")
	p.sysctl("net/ipv4/conf/all/rp_filter", "1")
	p.repairs("kernel-path", Bad, "the reverse path filter of flannel0-rx is 1")

	p.run("iptables -A INPUT -p udp --dport 8285 -j DROP")
	p.repairs("kernel-path", Warn, "drops datagrams from 192.0.2.2 to UDP port 8285; datagrams of the kernel path bypass INPUT")

	p.run("ip link del flannel0-rx")
	p.has("kernel-path", Bad, "interface flannel0-rx, on which packets from the kernel path arrive, does not exist")
}

func TestKernelPathThatIsNotInForceIsReportedOnce(t *testing.T) {
	p := newKernelPatient(t)
	p.x.Daemon.Dataplane.Offloads[0] = status.Offload{Name: "kernel-path", Mode: "auto", Why: "refused: self-test: no"}
	p.has("kernel-path", Warn, "user space carries all packets: refused: self-test: no")
	p.isWell("offloads")
	p.x.Daemon.Dataplane.Offloads = nil
	p.has("kernel-path", OK, "--kernel-path is off")
}

// Packets of peers arrive on another interface than those of user space.
func TestForwardPolicyThatKnowsOnlyTheTUNDeviceIsRepaired(t *testing.T) {
	p := newKernelPatient(t)
	p.x.Forward = false
	p.run("iptables -P FORWARD DROP && iptables -A FORWARD -i flannel0 -j ACCEPT && iptables -A FORWARD -o flannel0 -j ACCEPT")
	p.repairs("forward-policy", Warn, "no rule accepts packets from 10.5.0.2 to 10.5.1.2")
	p.run("iptables -P FORWARD DROP && iptables -R FORWARD 1 -i flannel0+ -j ACCEPT")
	p.isWell("forward-policy")
}

// A twilld that leaves a child behind, which keeps its output open, is not waited for.
func TestSelfTestEndsThoughTheDaemonLeavesAChild(t *testing.T) {
	dir := t.TempDir()
	child := filepath.Join(dir, "child")
	script := "#!/bin/sh\nsleep infinity &\necho $! > " + child + "\necho 'ok kernel-path works'\n"
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "twilld"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Cleanup(func() {
		text, err := os.ReadFile(child)
		testkit.Must(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		testkit.Must(t, err)
		testkit.Must(t, unix.Kill(pid, unix.SIGKILL))
	})
	result := make(chan error, 1)
	go func() { result <- daemonSelfTest(t.Context()) }()
	testkit.Must(t, testkit.Receive(t, "the self-test ends", result))
}
