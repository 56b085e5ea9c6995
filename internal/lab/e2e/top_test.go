package e2e

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/top"
)

// top runs twill top --json beside d.
func (d *daemon) top() (p top.Page) {
	d.t.Helper()
	// On a busy machine the daemon may take longer than twill waits for it.
	testkit.Eventually(d.t, "twill top answers", func() bool {
		var stderr strings.Builder
		cmd := d.ns.Command(d.t.Context(), bin("twill"), "top", "--json", "-interval=200ms", "--socket="+d.socket)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			d.t.Logf("twill top: %v: %s", err, stderr.String())
			return false
		}
		p = top.Page{}
		testkit.Must(d.t, json.Unmarshal(out, &p))
		return true
	})
	return p
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	auto   │   vxlan  │  udp
func TestTopShowsWhereTrafficFlows(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "vxlan"}`, Options: threeHosts})
	c.run(twill("auto", "--backend=auto"), twill("vxlan", "--backend=vxlan"), twill("udp", "--backend=udp"))
	c.waitTalk()
	a := c.running[0].(*daemon)

	for i, device := range map[int]string{1: "flannel.1", 2: "flannel0"} {
		stop := make(chan struct{})
		ended := make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					ended <- nil
					return
				default:
				}
				if err := ping(c.pod(0), c.pod(i).Addr, 1000); err != nil {
					ended <- err
					return
				}
			}
		}()
		testkit.Eventually(t, "traffic to "+c.nodes[i].Addr.String()+" shows at "+device, func() bool {
			for _, d := range a.top().Devices {
				if d.Name == device {
					return d.Peers == 1 && d.TXPackets > 0 && d.RXBits > 0
				}
			}
			return false
		})
		if device == "flannel0" {
			testkit.Eventually(t, "and at the peer", func() bool {
				p := a.top().Peers[0] // sorted by traffic
				return p.PublicIP == c.nodes[i].Addr && p.TXPackets > 0 && p.RXBits > 0
			})
		}
		close(stop)
		testkit.Must(t, <-ended)
	}

	out, err := a.ns.Command(t.Context(), bin("twill"), "top", "--once", "-interval=200ms", "--socket="+a.socket).Output()
	testkit.Must(t, err)
	for _, want := range []string{"flannel.1", "flannel0", c.nodes[1].Addr.String(), c.nodes[2].Addr.String()} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the page has no %s:\n%s", want, out)
		}
	}
}

// TestTopOnATerminalFollowsUntilQ types at a terminal of its own, made by script(1), with
// no size of its own, so that twill would print its page once.
func TestTopOnATerminalFollowsUntilQ(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newLab(t, labOptions{})
	d := l.daemons[0]
	cmd := d.ns.Command(t.Context(), "script", "-qec", "stty rows 24 cols 80 && exec "+bin("twill")+" top --interval=100ms --socket="+d.socket, "/dev/null")
	cmd.Env = append(cmd.Environ(), "TERM=xterm")
	var screen testkit.Log
	cmd.Stdout = &screen
	keys, err := cmd.StdinPipe()
	testkit.Must(t, err, cmd.Start())
	testkit.Eventually(t, "the screen shows the peer", func() bool { return strings.Contains(screen.String(), l.Hosts[1].Addr.String()) })
	_, err = io.WriteString(keys, "q")
	testkit.Must(t, err)
	if err := cmd.Wait(); err != nil {
		t.Errorf("twill top: %v\n%q", err, screen.String())
	}
	const fullScreen, restored = "\x1b[?1049h", "\x1b[?1049l" // xterm's alternate screen
	if shown := screen.String(); !strings.Contains(shown, fullScreen) || strings.LastIndex(shown, restored) < strings.LastIndex(shown, fullScreen) {
		t.Errorf("the terminal's own screen is not back:\n%q", shown)
	}
}
