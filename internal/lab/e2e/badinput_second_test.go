package e2e

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	twilld, twilld
func TestSecondDaemonOnAHostIsRefusedAndTheFirstGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	first := l.daemons[0]
	s := &site{Host: l.Hosts[0], t: t, dir: filepath.Dir(first.socket), leaseFile: l.leaseFile}
	own := filepath.Join(scratchDir(t), "twilld.sock")
	for _, c := range []struct {
		name  string
		flags []string
		says  []string
	}{
		{"the same flags", nil, []string{
			"control socket " + first.socket, fmt.Sprintf("another twilld is running (pid %d)", first.cmd.Process.Pid), "stop it first"}},
		{"its own socket", []string{"--socket=" + own}, []string{
			"flannel0 is open in another process", "stop the flanneld or twilld"}},
		{"its own socket, plain device", []string{"--socket=" + own, "--tun-offload=off"}, []string{
			"flannel0 is open in another process"}},
		{"its own socket and device", []string{"--socket=" + own, "--tun-name=flannel1"}, []string{
			"bind UDP 172.31.9.11:8285: address already in use", "another flanneld or twilld uses the port"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.refuses(t, because(c.says...), append(append([]string{}, first.args...), c.flags...)...)
		})
	}
	t.Run("its own socket, device and network", func(t *testing.T) {
		other := newSite(t)
		other.Host, other.t = s.Host, t
		other.write(otherNetwork(""))
		other.refuses(t, because("172.31.9.11:8285: address already in use", "set another Port"), other.flags("--tun-name=flannel1")...)
	})
	if first.ended() {
		t.Fatal("the first daemon has exited")
	}
	if err := ping(l.pod(0), l.pod(1).Addr, 1472); err != nil {
		t.Errorf("the first daemon no longer forwards: %v", err)
	}
}

func TestOfTwoDaemonsStartedAtOnceOneRuns(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{nodes: 1, idle: true})
	for _, own := range []string{"the same socket", "its own socket"} {
		for range 5 {
			first := l.daemons[0]
			second := newDaemon(t, first.ns, l.leaseFile)
			if own == "the same socket" {
				second.socket = first.socket
				second.args = first.args
			}
			first.start()
			second.start()
			runs, fails := first, second
			testkit.Eventually(t, "one of two daemons with "+own+" ends", func() bool {
				if first.ended() {
					runs, fails = second, first
				}
				return fails.ended()
			})
			log := fails.stderr.String()
			if why := log[strings.LastIndex(log[:len(log)-1], "\n")+1:]; fails.wait() != 1 ||
				!strings.Contains(why, "another twilld is running") && !strings.Contains(why, "flannel0") {
				t.Errorf("%s: exit code %d, %s", own, fails.wait(), why)
			}
			testkit.Eventually(t, "the other one is ready", func() bool {
				doc, err := status.Fetch(t.Context(), runs.socket)
				return err == nil && doc.Waiting == "" && doc.PID == runs.cmd.Process.Pid
			})
			runs.stop(syscall.SIGTERM)
		}
	}
}

// otherNetwork is soundLeases for another pod network; option goes into the
// Backend object.
func otherNetwork(option string) string {
	return strings.NewReplacer(`"10.5.`, `"10.9.`, `"udp"`, `"udp"`+option).Replace(soundLeases)
}

// pod-a ── host a ─── 8285, 8286 ─── host b ── pod-b
func TestTwoNetworksShareAHost(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	other := newSite(t)
	other.write(otherNetwork(`, "Port": 8286`))
	for i, h := range l.Hosts {
		d := startDaemon(t, h.NS, other.leaseFile, "--tun-name=flannel1")
		if got := d.status().Dataplane.Port; got != 8286 {
			t.Errorf("host %s: port %d, want 8286", h.Letter, got)
		}
		if l.daemons[i].ended() {
			t.Errorf("host %s: the first daemon has exited", h.Letter)
		}
	}
	testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472))
	hostA, hostB := *l.pod(0), *l.pod(1)
	hostA.NS, hostA.Addr = l.Hosts[0].NS, netip.MustParseAddr("10.9.1.0")
	hostB.Addr = netip.MustParseAddr("10.9.2.0")
	testkit.Must(t, ping(&hostA, hostB.Addr, 1472))
}
