package e2e

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// daemon is a twilld that a test has started. Its files stay when it ends, so
// that another can be started in its place.
type daemon struct {
	t          testing.TB
	ns         *netlab.Namespace
	subnetFile string
	previous   string   // what is in subnetFile when it starts; if empty, there is none
	socket     string   // control socket
	program    string   // file of the binary
	wrap       []string // a command to run it with, if not empty
	args       []string
	extra      []*os.File // passed from descriptor 3 on

	cmd    *netlab.Cmd
	stderr *testkit.Log
	done   chan struct{} // closed when the process has ended
}

// noRules keeps firewall rules out of tests of other things.
const noRules = "--iptables-forward-rules=false"

// newDaemon prepares a twilld in ns, on the interface eth0, and starts nothing.
// flags come after the usual ones and take precedence.
func newDaemon(t testing.TB, ns *netlab.Namespace, leaseFile string, flags ...string) *daemon {
	t.Helper()
	dir := scratchDir(t)
	d := &daemon{
		t: t, ns: ns, program: bin("twilld"),
		subnetFile: filepath.Join(dir, "subnet.env"),
		socket:     filepath.Join(dir, "twilld.sock"),
		stderr:     new(testkit.Log),
	}
	d.args = append([]string{
		"--lease-file=" + leaseFile, "--iface=" + netlab.UnderlayLink,
		"--subnet-file=" + d.subnetFile, "--socket=" + d.socket, noRules,
	}, flags...)
	return d
}

// scratchDir is t.TempDir with a short path: that of a unix socket may have 107
// bytes, and the names of tests are sentences.
func scratchDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "twill-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startDaemon is newDaemon, start and waitReady.
func startDaemon(t testing.TB, ns *netlab.Namespace, leaseFile string, flags ...string) *daemon {
	t.Helper()
	d := newDaemon(t, ns, leaseFile, flags...)
	d.start()
	d.waitReady()
	return d
}

// start starts the process. When the test ends it is stopped, and if the test
// has failed its log is shown.
func (d *daemon) start() {
	d.t.Helper()
	_ = os.Remove(d.subnetFile) // so that waitReady waits for the new one
	if d.previous != "" {
		testkit.Must(d.t, os.WriteFile(d.subnetFile, []byte(d.previous), 0o644))
	}
	argv := slices.Concat(d.wrap, []string{d.program}, d.args)
	d.cmd = d.ns.Command(context.Background(), argv[0], argv[1:]...)
	d.cmd.Stderr, d.cmd.ExtraFiles = d.stderr, d.extra
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	cmd, done := d.cmd, make(chan struct{})
	d.done = done
	go func() {
		_ = cmd.Wait() // the result is in ProcessState
		close(done)
	}()
	d.t.Cleanup(func() {
		if d.t.Failed() {
			d.dump()
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(testkit.Patience):
			d.t.Errorf("twilld in %s: still running %s after SIGTERM", d.ns, testkit.Patience)
			_ = cmd.Process.Kill()
			<-done
		}
	})
}

// dump writes the log, and what status says, to the test's output.
func (d *daemon) dump() {
	d.t.Logf("log of twilld in %s:\n%s", d.ns, d.stderr)
	if raw, err := status.FetchJSON(context.Background(), d.socket); err == nil {
		d.t.Logf("status of twilld in %s:\n%s", d.ns, raw)
	}
}

// waitReady waits until the daemon has written subnet.env and status says that
// nothing is being waited for.
func (d *daemon) waitReady() {
	d.t.Helper()
	testkit.Eventually(d.t, "twilld in "+d.ns.String()+" is ready", func() bool {
		if d.ended() {
			d.t.Fatalf("twilld in %s exited: %s", d.ns, d.cmd.ProcessState)
		}
		if text, err := os.ReadFile(d.subnetFile); err != nil || string(text) == d.previous {
			return false
		}
		doc, err := status.Fetch(context.Background(), d.socket)
		return err == nil && doc.Waiting == ""
	})
}

// status asks the daemon; it must be running.
func (d *daemon) status() *status.Document {
	d.t.Helper()
	doc, err := status.Fetch(context.Background(), d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	return doc
}

// ended reports whether the process has ended.
func (d *daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// stop sends a signal, waits for the end of the process and returns the exit
// code, -1 if a signal ended it.
func (d *daemon) stop(sig syscall.Signal) (code int) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatalf("twilld in %s: %v", d.ns, err)
	}
	return d.wait()
}

// wait waits for the end of the process and returns its exit code, -1 if a
// signal ended it.
func (d *daemon) wait() int {
	d.t.Helper()
	testkit.Receive(d.t, "twilld in "+d.ns.String()+" ends", d.done)
	return d.cmd.ProcessState.ExitCode()
}
