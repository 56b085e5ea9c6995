package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// wayPinged is what twill ping reports about one path to a node.
type wayPinged struct {
	To       netip.Addr `json:"to"`
	Sent     int        `json:"sent"`
	Answered int        `json:"answered"`
	Largest  int        `json:"largest_packet"`
}

// pinged is the report of twill ping.
type pinged struct {
	Peer struct {
		Backend string `json:"backend"`
	} `json:"peer"`
	Underlay wayPinged `json:"underlay"`
	Tunnel   wayPinged `json:"tunnel"`
}

// pings runs twill ping beside d.
func (d *daemon) pings(target string) (report pinged, code int) {
	d.t.Helper()
	cmd := d.ns.Command(d.t.Context(), bin("twill"), "ping", "-c=2", "-i=10ms", "--json", "--socket="+d.socket, target)
	out, err := cmd.Output()
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil && cmd.ProcessState.ExitCode() < 2 {
		d.t.Fatalf("twill ping %s: %v, %v\n%s", target, err, jsonErr, out)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		d.t.Logf("twill ping %s: %s", target, exit.Stderr)
	}
	return report, cmd.ProcessState.ExitCode()
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	auto   │   vxlan  │  udp
func TestPingShowsTheWayToANodeAndWhatItCarries(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	a := c.running[0].(*daemon)
	for i, want := range map[int]struct {
		backend string
		mtu     int
	}{1: {"vxlan", 1450}, 2: {"udp", 1450}} { // the MTU of the node is the smallest of its devices'
		n := c.nodes[i]
		for _, target := range []string{n.Addr.String(), n.Subnet.String(), c.pod(i).Addr.String()} {
			testkit.Eventually(t, fmt.Sprintf("ping %s: by %s, packets of %d bytes", target, want.backend, want.mtu), func() bool {
				r, code := a.pings(target)
				return code == 0 && r.Peer.Backend == want.backend && r.Underlay.Answered > 0 && r.Tunnel.Answered > 0 &&
					r.Underlay.Largest == 1500 && r.Tunnel.Largest == want.mtu
			})
		}
	}

	c.running[2].(*daemon).sh("iptables -A INPUT -p udp --dport 8285 -j DROP")
	testkit.Eventually(t, "with the tunnel blocked, only the underlay answers", func() bool {
		r, code := a.pings(c.nodes[2].Addr.String())
		return code == 1 && r.Underlay.Answered > 0 && r.Tunnel.Sent == 2 && r.Tunnel.Answered == 0
	})

	cmd := a.ns.Command(t.Context(), bin("twill"), "ping", "--socket="+a.socket, "203.0.113.1")
	out, _ := cmd.CombinedOutput()
	if want := fmt.Sprintf("%s with %s", c.nodes[1].Addr, c.nodes[1].Subnet); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), want) {
		t.Errorf("a stranger's address: exit code %d, %s; want 2 and %q", cmd.ProcessState.ExitCode(), out, want)
	}
}

// pod-a ── host a ──── 1400 ──── host b ── pod-b
func TestPingMeasuresANarrowPathInBothFamilies(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{})
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		testkit.Eventually(t, "packets of 1472 bytes pass the tunnel", func() bool {
			r, code := l.daemons[0].pings(addr.String())
			return code == 0 && r.Tunnel.Largest == 1472
		})
	})
	for _, h := range l.Hosts {
		testkit.Must(t, h.NS.Command(t.Context(), "ip", "link", "set", "dev", netlab.UnderlayLink, "mtu", "1400").Run())
	}
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		testkit.Eventually(t, "packets of 1372 bytes pass the tunnel, and no larger ones", func() bool {
			r, _ := l.daemons[0].pings(addr.String())
			return r.Underlay.Largest == 1400 && r.Tunnel.Largest == 1372
		})
	})
}
