//go:build amd64

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// The wall clock of one node goes forward by more than a lease lasts, that of
// the other back, and etcd's forward. Each daemon renews its lease a minute after
// it has acquired it.
//
// pod-a ── host a ─┬──────── host b ── pod-b
//
//	+3 days  └── etcd      −5 hours
//	             +2 days
func TestStepsOfTheClockTouchNeitherLeasesNorPackets(t *testing.T) {
	t.Parallel()
	l := idleEtcdLab(t, 2, "--subnet-lease-renew-margin=1439")
	l.grantAll()
	l.start()
	flows := l.steady(0, 1)
	flows.pass(t, 500)
	steps := []time.Duration{72 * time.Hour, -5 * time.Hour}
	before := []entry{l.entry(0), l.entry(1)}
	for i, d := range l.daemons {
		stepClock(t, d.cmd.Process.Pid, steps[i])
	}
	stepClock(t, l.server.PID(), 48*time.Hour)
	for i, d := range l.daemons {
		// A renewal that is five hours late would exceed the time of this test, if not of the lease.
		if !testkit.Within(2*testkit.Patience, func() bool { return l.entry(i).lease != before[i].lease }) {
			t.Fatalf("host %s: no renewal within %s, want one after a minute", l.Hosts[i].Letter, 2*testkit.Patience)
		}
		testkit.Eventually(t, "the daemon reports the end of its lease by its own clock", func() bool {
			end := d.status().Lease.Expiration.Add(-steps[i])
			return end.After(time.Now().Add(23*time.Hour)) && end.Before(time.Now().Add(25*time.Hour))
		})
		if log := d.stderr.String(); strings.Contains(log, "lost") || strings.Contains(log, "not ready") || strings.Contains(log, "trying again") {
			t.Errorf("host %s is disturbed by the step:\n%s", l.Hosts[i].Letter, log)
		}
		now := l.entry(i)
		if n := now.version - before[i].version; n > 10 {
			t.Errorf("host %s has written its lease %d times", l.Hosts[i].Letter, n)
		}
		ttl, err := l.client.TimeToLive(t.Context(), now.lease)
		testkit.Must(t, err)
		if ttl.GrantedTTL != 86400 || ttl.TTL < 86000 {
			t.Errorf("host %s: the lease lasts %d s and has %d left", l.Hosts[i].Letter, ttl.GrantedTTL, ttl.TTL)
		}
	}
	flows.pass(t, 500)
	flows.stop(t)
	l.checkHistory()
}
