package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/pinger"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// restarts are the ways in which twilld ends and starts again while pods talk.
var restarts = []struct {
	name    string
	systemd bool // twilld is a service of systemd
	disturb func(b *testing.B, r *restarting)
}{
	{"nothing happens", false, func(*testing.B, *restarting) {}},
	{"systemctl restart", true, func(_ *testing.B, r *restarting) { r.machine.run("systemctl", "restart", "twilld") }},
	{"systemctl reload", true, func(_ *testing.B, r *restarting) { r.machine.run("systemctl", "reload", "twilld") }},
	{"systemctl reload that fails", true, func(b *testing.B, r *restarting) {
		r.machine.run("sh", "-c", "echo FLANNELD_THREAD_PAIRS=-1 >>/etc/twill/twilld.env")
		if r.machine.command("systemctl", "reload", "twilld").Run() == nil {
			b.Error("the reload does not fail")
		}
		r.machine.run("sed", "-i", "/THREAD_PAIRS/d", "/etc/twill/twilld.env")
	}},
	// No request is sent to systemd afterwards: waking it would make it restart twilld sooner.
	{"kill -9 under systemd", true, func(_ *testing.B, r *restarting) {
		r.machine.comes("ActiveState", "active")
		r.machine.run("kill", "-KILL", r.machine.property("MainPID"))
	}},
	{"twilld --takeover", false, func(_ *testing.B, r *restarting) { r.takeOver() }},
	{"twilld --takeover with other flags", false, func(_ *testing.B, r *restarting) {
		r.turn++
		r.takeOver("--thread-pairs="+strconv.Itoa(1+r.turn%2), "--busy-poll="+[]string{"on", "off"}[r.turn%2])
	}},
	{"twilld --takeover that fails", false, func(b *testing.B, r *restarting) {
		if next := r.daemon.takeOver("--tun-offload=off"); next.wait() == 0 {
			b.Error("the new process does not fail")
		}
	}},
	{"SIGTERM and started by hand", false, func(_ *testing.B, r *restarting) { r.again(syscall.SIGTERM) }},
	{"kill -9 and started by hand", false, func(_ *testing.B, r *restarting) { r.again(syscall.SIGKILL) }},
}

// restarting is a lab of two hosts, on the first of which twilld is restarted.
type restarting struct {
	*lab
	machine *machine // nil without systemd
	daemon  *daemon  // of host a; nil under systemd
	turn    int
}

// pod-a ── host a ──────────── host b ── pod-b
//
// Each iteration is a restart on host a while pod-a pings pod-b each millisecond.
// "make restarts" runs it; the record of each iteration is left in PINGS_DIR if that is
// set. It ends with a table as Markdown. It includes the delays of the pinger itself:
// on a busy machine they limit the other figures.
func BenchmarkRestartUnderPings(b *testing.B) {
	rows := make(map[string]string)
	defer func() {
		fmt.Println("\n| | lost, at most | longest silence, median | at most | pinger late, at most |\n|---|---|---|---|---|")
		for _, way := range restarts {
			fmt.Println(rows[way.name])
		}
	}()
	for _, way := range restarts {
		b.Run(way.name, func(b *testing.B) {
			r := newRestarting(b, way.systemd)
			var lost []int
			var silence, pause []time.Duration
			for i := range b.N {
				p := r.ping()
				testkit.Eventually(b, "pods talk before", func() bool { return p.Sent() > 300 })
				way.disturb(b, r)
				from := p.Sent()
				testkit.Eventually(b, "pods talk afterwards", func() bool { return p.Sent() > from+700 })
				record, err := p.Stop(time.Second)
				testkit.Must(b, err, keepRecord(fmt.Sprintf("%s %d", way.name, i), record))
				lost, silence, pause = append(lost, record.Lost()), append(silence, record.Silence()), append(pause, record.Pause())
			}
			slices.Sort(silence)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(slices.Max(lost)), "lost-most")
			b.ReportMetric(pinger.Milliseconds(silence[len(silence)/2]), "ms-silence-median")
			b.ReportMetric(pinger.Milliseconds(slices.Max(silence)), "ms-silence-longest")
			b.ReportMetric(pinger.Milliseconds(slices.Max(pause)), "ms-pause-of-pinger")
			rows[way.name] = fmt.Sprintf("| %s | %d | %.1f ms | %.1f ms | %.1f ms |", way.name, slices.Max(lost),
				pinger.Milliseconds(silence[len(silence)/2]), pinger.Milliseconds(slices.Max(silence)), pinger.Milliseconds(slices.Max(pause)-time.Millisecond))
		})
	}
}

func newRestarting(b *testing.B, systemd bool) *restarting {
	b.Helper()
	r := &restarting{lab: newLab(b, labOptions{idle: true})}
	if systemd {
		r.machine = boot(b, r.Hosts[0].NS, "FLANNELD_IFACE="+netlab.UnderlayLink, "FLANNELD_LEASE_FILE=/etc/twill/leases.json")
		leases, err := os.ReadFile(r.leaseFile)
		testkit.Must(b, err)
		r.machine.write("/etc/twill/leases.json", string(leases))
		r.machine.run("systemctl", "start", "twilld")
	} else {
		r.daemon = r.daemons[0]
		r.daemon.start()
		r.daemon.waitReady()
	}
	r.daemons[1].start()
	r.daemons[1].waitReady()
	testkit.Must(b, r.SetPodMTU(1472), acquaint(r.pod(0), r.pod(1).Addr))
	return r
}

// ping begins to ping pod-b from pod-a.
func (r *restarting) ping() (p *pinger.Pinger) {
	r.t.Helper()
	testkit.Must(r.t, r.pod(0).NS.Do(func() (err error) {
		p, err = pinger.Start(r.pod(1).Addr, time.Millisecond)
		return err
	}))
	return p
}

func (r *restarting) takeOver(flags ...string) {
	r.t.Helper()
	next := r.daemon.takeOver(flags...)
	r.daemon.wait()
	next.waitReady()
	next.args = r.daemon.args
	r.daemon = next
}

// again ends the daemon and starts another at once.
func (r *restarting) again(sig syscall.Signal) {
	r.t.Helper()
	r.daemon.stop(sig)
	r.daemon.start()
	r.daemon.waitReady()
}

func keepRecord(name string, r pinger.Record) error {
	dir := os.Getenv("PINGS_DIR")
	if dir == "" {
		return nil
	}
	return r.WriteFile(filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".txt"))
}
