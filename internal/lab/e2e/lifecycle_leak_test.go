package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	twilld "github.com/twillnet/twill/internal/daemon"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// descriptors lists what a process has open, without numbers that differ from
// one socket to the next.
func descriptors(t testing.TB, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	var open []string
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed meanwhile, such as the one that lists dir
		}
		kind, _, _ := strings.Cut(target, ":[")
		open = append(open, kind)
	}
	slices.Sort(open)
	return open
}

// goroutines returns how many a daemon has, according to its metrics.
func (l *lab) goroutines() (n int) {
	l.t.Helper()
	_, text, err := l.get("/metrics")
	testkit.Must(l.t, err)
	_, text, _ = strings.Cut(text, "\ngo_goroutines ")
	_, err = fmt.Sscan(text, &n)
	testkit.Must(l.t, err)
	return n
}

func TestHundredLeaseChangesLeakNothing(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true, flags: []string{"--healthz-port=8081"}})
	replace(t, l.leaseFile, leasesOf(2))
	l.start()
	d := l.daemons[0]
	change := func(n int) {
		t.Helper()
		replace(t, l.leaseFile, leasesOf(n))
		d.seesLeases("change", n)
	}
	change(3)
	change(2)
	before, goroutines := descriptors(t, d.cmd.Process.Pid), l.goroutines()
	for range 50 {
		change(3)
		change(2)
	}
	var after []string
	// Not equal: a connection that requested the status may be closing.
	if !testkit.Within(testkit.Patience, func() bool {
		after = descriptors(t, d.cmd.Process.Pid)
		return len(after) <= len(before)
	}) {
		t.Errorf("open after 100 changes:\n%q\nbefore:\n%q", after, before)
	}
	testkit.Eventually(t, fmt.Sprintf("no more than the previous %d goroutines", goroutines), func() bool { return l.goroutines() <= goroutines })
}

// running finds goroutines that belong to a daemon.
var running = regexp.MustCompile(`twill/(internal/(daemon|status|httpd)|fastpath|internal/backend/udp|lease/static|tun)\b|fsnotify|netlink\.linkSubscribe`)

// ofDaemons returns the stacks of the goroutines of daemons in this process.
func ofDaemons() []string {
	buf := make([]byte, 4<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return slices.DeleteFunc(stacks, func(s string) bool { return !running.MatchString(s) })
}

func TestTwentyRunsInOneProcessLeakNothing(t *testing.T) {
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	run := func() {
		t.Helper()
		_ = os.Remove(d.subnetFile)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			defer stop()
			if !testkit.Within(testkit.Patience, func() bool {
				doc, err := status.Fetch(ctx, d.socket)
				return err == nil && doc.Waiting == ""
			}) {
				t.Error("a daemon in this process does not become ready")
			}
		}()
		err := d.ns.Do(func() error {
			args := append(slices.Clone(d.args), "--healthz-port=8081")
			return twilld.Run(ctx, args, nil, io.Discard, d.stderr)
		})
		<-stopped
		if err != nil {
			t.Fatalf("%v\n%s", err, d.stderr)
		}
	}
	run() // what is opened once per process is open now
	before := descriptors(t, os.Getpid())
	host := netState(t, d.ns)
	for range 20 {
		run()
	}
	var after, left []string
	if !testkit.Within(testkit.Patience, func() bool {
		after, left = descriptors(t, os.Getpid()), ofDaemons()
		return len(after) <= len(before) && len(left) == 0
	}) {
		t.Errorf("open after 20 runs:\n%q\nbefore:\n%q\nstill running:\n%s", after, before, strings.Join(left, "\n\n"))
	}
	if now := netState(t, d.ns); now != host {
		t.Errorf("the host was\n%s\nand is\n%s", host, now)
	}
}
