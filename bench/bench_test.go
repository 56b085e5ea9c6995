package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// binDir is where the tests' programs are built.
var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "twill-bench-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := netlabtest.Run(m)
	os.RemoveAll(binDir)
	os.Exit(code)
}

// binaries builds twilld and the floor, once.
var binaries = sync.OnceValues(func() (Binaries, error) {
	bin := Binaries{
		Twilld:     filepath.Join(binDir, "twilld"),
		FlannelUDP: filepath.Join(binDir, "not-built"),
		Floor:      filepath.Join(binDir, "floor"),
	}
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", binDir, "../cmd/twilld", "./floor").CombinedOutput()
	if err != nil {
		return bin, errors.New(string(out))
	}
	return bin, nil
})

// stand makes a path that lasts as long as the test.
func stand(t *testing.T, name string, opts netlab.Options) *Connection {
	t.Helper()
	netlabtest.Root(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	path, ok := find(Paths, name, Path.name)
	if !ok {
		t.Fatalf("no path %q", name)
	}
	c, err := path.Up(t.Context(), opts, bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// measured are the figures of each load that must be above zero, however short
// the run: 50 ms can pass without a lost packet or a tick of the CPU accounts.
var measured = map[string][]report.Metric{
	"ping":    {report.PingSize, report.PingRoundTrip},
	"tcp1":    {report.Throughput},
	"tcp4":    {report.Throughput},
	"tcp16":   {report.Throughput},
	"tcp1r":   {report.Throughput},
	"tcp4r":   {report.Throughput},
	"tcp16r":  {report.Throughput},
	"tcp2way": {report.Throughput},
	"udp64":   {report.PacketRate, report.Throughput},
	"udp64-1": {report.PacketRate, report.Throughput},
	"udp512":  {report.PacketRate, report.Throughput},
	"udpmtu":  {report.PacketRate, report.Throughput},
	"rr":      {report.HalfRTT50, report.HalfRTT99, report.HalfRTT999},
	"rr-load": {report.HalfRTT50, report.HalfRTT99, report.HalfRTT999, report.Throughput},
	"connect": {report.ConnectionRate},
}

func TestEveryLoadMeasuresWhatItSays(t *testing.T) {
	for _, path := range []string{"vxlan", "twill"} {
		t.Run(path, func(t *testing.T) {
			c := stand(t, path, netlab.Options{Wire: netlab.MTU})
			for _, load := range Loads {
				// In a short run on a busy machine nothing may arrive; in none of
				// many, each longer, only over a path that is broken.
				var figures report.Figures
				var err error
				for d, over := 50*time.Millisecond, time.Now().Add(testkit.Patience); ; d = min(2*d, 2*time.Second) {
					figures, err = load.run(t.Context(), c, d)
					if err == nil || errors.Is(err, errLossy) || time.Now().After(over) {
						break
					}
				}
				if errors.Is(err, errLossy) {
					// So busy a machine has no figure. A path that loses what
					// all its buffers have room for is broken.
					f, err := runFlood(t.Context(), c, traffic{payload: 64, flows: 1}, 2000, 200*time.Millisecond)
					if err != nil || f.loss() > 0.5 {
						t.Errorf("%s: %v; at 2000 a second: %+v", load.Name, err, f)
					}
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				want := measured[load.Name]
				if len(want) == 0 {
					t.Errorf("%s: what does it measure?", load.Name)
				}
				if len(c.daemons) > 0 && load.Name != "ping" {
					want = append(slices.Clone(want), report.PeakRSS)
				}
				for _, m := range want {
					if v := figures[m.Key]; v <= 0 {
						t.Errorf("%s: %s is %g", load.Name, m.Key, v)
					}
				}
			}
		})
	}
}

func TestFloorCarriesAStream(t *testing.T) {
	tcp1, _ := find(Loads, "tcp1", Load.name)
	for _, path := range []string{"floor", "floor-plain"} {
		figures, err := tcp1.run(t.Context(), stand(t, path, netlab.Options{Wire: netlab.MTU}), 50*time.Millisecond)
		if err != nil || figures[report.Throughput.Key] <= 0 {
			t.Errorf("%s: %v, %v", path, figures, err)
		}
	}
}

func TestPodsHaveTheMTUThatThePathLeaves(t *testing.T) {
	for path, overhead := range map[string]int{"vxlan": 50, "host-gw": 0, "wire": 0, "twill": 28, "floor": 38, "floor-plain": 28} {
		if c := stand(t, path, netlab.Options{MTU: 1400}); c.MTU != 1400-overhead {
			t.Errorf("%s: MTU %d, want %d", path, c.MTU, 1400-overhead)
		}
	}
}

func TestAFloodKeepsItsRateAndCountsWhatIsLost(t *testing.T) {
	c := stand(t, "host-gw", netlab.Options{Impair: &netlab.Impairment{Loss: 0.5, Seed: 1}})
	f, err := runFlood(t.Context(), c, traffic{payload: 500, flows: 2}, 5000, 400*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if f.loss() < 0.4 || f.loss() > 0.6 {
		t.Errorf("loss %g on a wire that loses half", f.loss())
	}
	if offered := float64(f.sent) / f.elapsed.Seconds(); offered > 5500 {
		t.Errorf("sent %g datagrams per second, want 5000", offered)
	}
}

func TestPingFailsWhereTheFullMTUDoesNotFit(t *testing.T) {
	c := stand(t, "vxlan", netlab.Options{})
	c.MTU++ // what is left of 1500 is one byte less
	_, err := fullPing(t.Context(), c, 0)
	if err == nil || !strings.Contains(err.Error(), "1451 bytes, DF") {
		t.Errorf("got %v", err)
	}
}

func TestAPathThatCannotBeMadeIsReportedAndTheOthersRun(t *testing.T) {
	netlabtest.Root(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Rounds: 2, Duration: 50 * time.Millisecond, Binaries: bin}
	opts.Wires, _ = ParseWires("mtu+loss,super")
	opts.Paths, _ = ParsePaths("flannel-udp,host-gw")
	opts.Loads, _ = ParseLoads("rr")
	r, err := Measure(t.Context(), opts, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Wires) != 2 {
		t.Fatalf("%d wires", len(r.Wires))
	}
	for _, w := range r.Wires {
		if e := w.Paths[0].Error; !strings.Contains(e, "not-built does not exist") || !strings.Contains(e, "make peers") {
			t.Errorf("%s: flannel-udp: %q", w.Name, e)
		}
		if len(w.Runs) != 2 || w.Runs[0].Error != "" || w.Rounds != 2 {
			t.Errorf("%s: %d rounds, runs %+v", w.Name, w.Rounds, w.Runs)
		}
	}
	if r.Ended.Before(r.Started) || r.Machine.CPUs == 0 || r.Go == "" {
		t.Errorf("circumstances are missing: %+v", r)
	}
}

func TestADaemonThatEndsEarlyIsQuoted(t *testing.T) {
	netlabtest.Root(t)
	script := filepath.Join(t.TempDir(), "twilld")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho no such luck >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path, _ := find(Paths, "twill", Path.name)
	_, err := path.Up(t.Context(), netlab.Options{}, Binaries{Twilld: script})
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such luck") {
		t.Errorf("got %v", err)
	}
}

func TestAnInterruptedSessionKeepsFinishedRoundsAndLeavesNothing(t *testing.T) {
	netlabtest.Root(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opts := Options{Rounds: 100, Duration: 50 * time.Millisecond}
	opts.Wires, _ = ParseWires("super,mtu")
	opts.Paths, _ = ParsePaths("vxlan")
	opts.Loads, _ = ParseLoads("rr,tcp1")
	lines := &lineCounter{at: 7, then: cancel} // in the middle of the third round
	r, err := Measure(ctx, opts, lines)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if w := r.Wires[0]; !r.Interrupted || len(r.Wires) != 1 || w.Rounds != 2 || len(w.Runs) != 4 {
		t.Errorf("%d wires, %d rounds, %d runs; want 1, 2, 4", len(r.Wires), w.Rounds, len(w.Runs))
	}
	if left := netlab.Held(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// lineCounter calls then when a number of lines that speak of a wire have been
// written: one for each path, one for each run that begins.
type lineCounter struct {
	at   int
	then func()
}

func (l *lineCounter) Write(b []byte) (int, error) {
	if !strings.HasPrefix(string(b), "wire ") {
		return len(b), nil
	}
	if l.at--; l.at == 0 {
		l.then()
	}
	return len(b), nil
}

func TestLabStaysUntilItIsTakenDown(t *testing.T) {
	netlabtest.Root(t)
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadLab(); err == nil {
		t.Fatal("a lab is up on this machine; take it down first: twill-lab down")
	}
	lab, err := LabUp(t.Context(), netlab.MTU, bin)
	if err != nil {
		t.Fatal(err)
	}
	defer LabDown()
	if _, err := LabUp(t.Context(), netlab.MTU, bin); err == nil || !strings.Contains(err.Error(), "twill-lab down") {
		t.Errorf("a second lab: %v", err)
	}
	found, err := LoadLab()
	if err != nil {
		t.Fatal(err)
	}
	if found.PodMTU != 1472 || len(found.Hosts) != 2 || found.Hosts[0] != lab.Hosts[0] {
		t.Errorf("the lab reports %+v", found)
	}
	pod, err := netlab.OpenNamed("twill-pod-a")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pod.Dial(t.Context(), "udp", found.Hosts[1].PodAddr.String()+":9")
	if err != nil {
		t.Errorf("from the pod: %v", err)
	} else {
		conn.Close()
	}
	if err := pod.Close(); err != nil {
		t.Error(err)
	}
	if err := LabDown(); err != nil {
		t.Error(err)
	}
	if pids := daemonsOf(labLeases()); len(pids) > 0 {
		t.Errorf("twilld is still there: %v", pids)
	}
	for _, name := range labNames {
		if exists("/run/netns/" + labPrefix + name) {
			t.Errorf("%s is still there", labPrefix+name)
		}
	}
	if err := LabDown(); !errors.Is(err, ErrNoLab) {
		t.Errorf("taking down nothing: %v", err)
	}
}
