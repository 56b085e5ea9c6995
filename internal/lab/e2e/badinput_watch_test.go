package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// leasesOf is a lease file for the first n of the hosts of a topology.
func leasesOf(n int) string {
	var leases []string
	for i := 1; i <= n; i++ {
		leases = append(leases, fmt.Sprintf(`    {"Subnet": "10.5.%d.0/24", "PublicIP": "172.31.9.1%[1]d"}`, i))
	}
	return "{\n  \"Network\": \"10.5.0.0/16\",\n  \"Leases\": [\n" + strings.Join(leases, ",\n") + "\n  ]\n}\n"
}

// replace renames a new version of the file over the old one.
func replace(t testing.TB, path, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(path+".new", []byte(text), 0o644), os.Rename(path+".new", path))
}

// rewrite truncates the file and writes it, as some editors do.
func rewrite(t testing.TB, path, text string) {
	t.Helper()
	testkit.Must(t, os.WriteFile(path, []byte(text), 0o644))
}

// seesLeases waits until the daemon has read a valid version with n leases.
func (d *daemon) seesLeases(what string, n int) {
	d.t.Helper()
	testkit.Eventually(d.t, fmt.Sprintf("%s: %d leases in force, and no error", what, n), func() bool {
		s := d.status().Source
		return s.Leases == n && s.LastError == ""
	})
}

// page returns what the operator's command prints about the daemon, without line breaks.
func (d *daemon) page() string {
	d.t.Helper()
	out, err := d.ns.Command(context.Background(), built(d.t, "twill", "./cmd/twill"), "status", "--socket="+d.socket).CombinedOutput()
	if err != nil {
		d.t.Fatalf("twill status: %v\n%s", err, out)
	}
	return testkit.Unwrapped(string(out))
}

// trickle is traffic that continues until it is stopped.
type trickle struct {
	quit   chan struct{}
	result chan error
}

// trickle sends datagrams from pod-a to pod-b and back.
func (l *lab) trickle() *trickle {
	t := &trickle{make(chan struct{}), make(chan error, 1)}
	go func() {
		var err error
		for err == nil {
			select {
			case <-t.quit:
				t.result <- nil
				return
			default:
			}
			err = datagrams{flows: 1, count: 100, window: 1, sizes: []int{8, 1400}}.run(l.pod(0), l.pod(1), l.pod(1).Addr)
		}
		t.result <- err
	}()
	return t
}

// stop ends the traffic and returns an error if a packet was lost.
func (t *trickle) stop() error {
	close(t.quit)
	return <-t.result
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	the file breaks
func TestBrokenLeaseFileIsRefusedWhileTrafficGoesOn(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	rewrite(t, l.leaseFile, leasesOf(2))
	l.start()
	d := l.daemons[0]

	traffic := l.trickle()
	for _, c := range []struct{ name, text, says string }{
		{"cut off", leasesOf(3)[:100], "unexpected end of JSON input"},
		{"empty", "", "leases.json: the file is empty"},
		{"subnet outside", strings.Replace(leasesOf(3), "10.5.3.0", "10.6.3.0", 1), `leases.json:6: Leases[2].Subnet "10.6.3.0/24" is outside the network 10.5.0.0/16`},
		{"misspelt key", strings.Replace(leasesOf(3), `"PublicIP"`, `"PublikIP"`, 1), `leases.json:4: Leases[0]: unknown key "PublikIP"; did you mean "PublicIP"?`},
		{"two faults", strings.NewReplacer("10.5.2.0", "10.5.1.0", "10.5.3.0", "10.6.3.0").Replace(leasesOf(3)), "(and 1 more)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			replace(t, l.leaseFile, c.text)
			testkit.Eventually(t, "the refusal is in the status", func() bool { return strings.Contains(d.status().Source.LastError, c.says) })
			testkit.Eventually(t, "the refusal is in the log", func() bool {
				return strings.Contains(d.stderr.String(), strings.ReplaceAll(c.says, `"`, `\"`))
			})
			if page := d.page(); !strings.Contains(page, "refused") || !strings.Contains(page, c.says) {
				t.Errorf("twill status does not say %q:\n%s", c.says, page)
			}
			if n := d.status().Source.Leases; n != 2 {
				t.Errorf("%d leases in force, want the 2 of the last good version", n)
			}
			replace(t, l.leaseFile, leasesOf(2))
			d.seesLeases("repaired", 2)
		})
	}
	if err := traffic.stop(); err != nil {
		t.Errorf("traffic while the file was broken: %v", err)
	}
}

func TestChangeOfTheLeaseFileIsSeenHoweverItIsMade(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	rewrite(t, l.leaseFile, leasesOf(2))
	l.start()
	d := l.daemons[0]
	dir := scratchDir(t)
	// A ConfigMap: leases.json → ..data/leases.json, ..data → a directory.
	version := 0
	swap := func(text string) {
		t.Helper()
		version++
		now := fmt.Sprintf("..%d", version)
		testkit.Must(t, os.Mkdir(filepath.Join(dir, now), 0o755))
		rewrite(t, filepath.Join(dir, now, "leases.json"), text)
		testkit.Must(t, os.Symlink(now, filepath.Join(dir, "..tmp")), os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")))
		if version > 1 {
			testkit.Must(t, os.RemoveAll(filepath.Join(dir, fmt.Sprintf("..%d", version-1))))
		}
	}
	swap(leasesOf(2))

	traffic := l.trickle()
	for i, step := range []struct {
		name string
		do   func(text string)
	}{
		{"written in place", func(text string) { rewrite(t, l.leaseFile, text) }},
		{"renamed over", func(text string) { replace(t, l.leaseFile, text) }},
		{"deleted and written again", func(text string) {
			testkit.Must(t, os.Remove(l.leaseFile))
			testkit.Eventually(t, "the loss is reported", func() bool { return strings.Contains(d.status().Source.LastError, "no such file") })
			rewrite(t, l.leaseFile, text)
		}},
		{"replaced by a link", func(text string) {
			swap(text)
			testkit.Must(t, os.Symlink("..data/leases.json", filepath.Join(dir, "leases.json")),
				os.Symlink(filepath.Join(dir, "leases.json"), l.leaseFile+".new"), os.Rename(l.leaseFile+".new", l.leaseFile))
		}},
		{"ConfigMap swapped", swap},
		{"ConfigMap swapped again", swap},
		{"a file again", func(text string) { replace(t, l.leaseFile, text) }},
	} {
		n := 3 + i
		step.do(leasesOf(n))
		d.seesLeases(step.name, n)
	}
	if err := traffic.stop(); err != nil {
		t.Errorf("traffic meanwhile: %v", err)
	}
}

// A node keeps what it was started with, and reports what requires a restart.
func TestChangeThatNeedsARestartIsReportedAndLeavesTheNodeWorking(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, says string }{
		{"own lease gone", strings.Replace(leasesOf(2), "    {\"Subnet\": \"10.5.1.0/24\", \"PublicIP\": \"172.31.9.11\"},\n", "", 1), "this node's lease 10.5.1.0-24 was deleted"},
		{"own lease given away", strings.Replace(leasesOf(2), "172.31.9.11", "172.31.9.19", 1), "another public IP"},
		{"other network", strings.ReplaceAll(leasesOf(2), `"10.5.`, `"10.7.`), "the network is now [10.7.0.0/16]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{idle: true})
			replace(t, l.leaseFile, leasesOf(2))
			l.start()
			replace(t, l.leaseFile, c.text)
			d := l.daemons[0]
			testkit.Eventually(t, "the status says that a restart is needed", func() bool { return strings.Contains(d.status().Restart, c.says) })
			if page := d.page(); !strings.Contains(page, "restart needed: ") {
				t.Errorf("twill status does not show it:\n%s", page)
			}
			if c.name == "own lease given away" || c.name == "own lease gone" {
				return // host b follows: it sends elsewhere or nowhere
			}
			if err := ping(l.pod(0), l.pod(1).Addr, 1472); err != nil {
				t.Error(err)
			}
		})
	}
}
