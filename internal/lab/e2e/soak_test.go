package e2e

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/pinger"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// soakTime is set by "make soak".
var soakTime = flag.Duration("soak", 0, "how long the soak test continues with faults; it runs at least two rounds")

// slack is how many more descriptors or goroutines a daemon may have than before,
// since connections and retries come and go. What leaks once a round is more than
// that in a soak of minutes.
const slack = 16

// soak is a lab under traffic and one fault after the other. Host a is restarted in
// each way; host b runs from the beginning to the end.
//
//	pod-a ── host a ─┬─ host b ── pod-b
//	                 └─ etcd
type soak struct {
	*etcdLab
	faults []fault

	transfers, broken atomic.Int64 // of a MiB each way, by TCP; those that a fault has broken
}

// fault is something that happens to the nodes, and what it has cost so far.
type fault struct {
	name   string
	happen func(s *soak, p *pinger.Pinger) // p pings from pod-a to pod-b

	times, pings, lost int
	most               int           // lost at once
	silence            time.Duration // the longest
}

// A fault is over when pods talk both ways and both nodes are ready.
func TestNodesEndALifeOfFaultsAsTheyBeganIt(t *testing.T) {
	t.Parallel()
	s := &soak{etcdLab: idleEtcdLab(t, 2, "--healthz-port=8081"), faults: soakFaults()}
	s.grantAll()
	s.start()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var traffic sync.WaitGroup
	traffic.Go(func() { s.transfer(ctx) })
	t.Cleanup(traffic.Wait)

	begin, rounds := time.Now(), 0
	var before, after []resources
	for ; rounds < 2 || time.Since(begin) < *soakTime; rounds++ {
		for i := range s.faults {
			s.meet(&s.faults[i])
		}
		if rounds == 0 {
			before = s.resources()
		}
	}
	took := time.Since(begin).Round(time.Second)
	stop()
	traffic.Wait()
	sound := testkit.Within(testkit.Patience, func() bool {
		after = s.resources()
		return !after[1].leaked(before[1])
	})
	t.Logf("%s, %d rounds\n%s", took, rounds, s.report(before, after))
	if !sound {
		t.Errorf("host b uses %+v after %d rounds, it used %+v after the first", after[1], rounds, before[1])
	}
	s.checkHistory()
}

// meet lets a fault happen while pod-a pings pod-b each millisecond.
func (s *soak) meet(f *fault) {
	s.t.Helper()
	var p *pinger.Pinger
	testkit.Must(s.t, s.pod(0).NS.Do(func() (err error) {
		p, err = pinger.Start(s.pod(1).Addr, time.Millisecond)
		return err
	}))
	s.pass(p, 200)
	f.happen(s, p)
	for i := range s.daemons {
		testkit.Eventually(s.t, fmt.Sprintf("after %s: host %s is ready and its pod reaches the other", f.name, s.Hosts[i].Letter), func() bool {
			doc, err := status.Fetch(context.Background(), s.daemons[i].socket)
			return err == nil && doc.Waiting == "" && pingOnce(s.pod(i), s.pod(1-i).Addr) == nil
		}, s.daemons[i].stderr.String)
	}
	s.pass(p, 200)
	r, err := p.Stop(time.Second)
	testkit.Must(s.t, err)
	f.times++
	f.pings += len(r)
	f.lost += r.Lost()
	f.most = max(f.most, r.Lost())
	f.silence = max(f.silence, r.Silence())
}

// pass waits until n more pings were sent.
func (s *soak) pass(p *pinger.Pinger, n int) {
	s.t.Helper()
	from := p.Sent()
	testkit.Eventually(s.t, fmt.Sprintf("%d more pings are sent", n), func() bool { return p.Sent() >= from+n })
}

// transfer moves a MiB each way between the pods, again and again, until ctx is done.
// A fault may break a connection, but what arrives is what was sent.
func (s *soak) transfer(ctx context.Context) {
	for ctx.Err() == nil {
		err := streams{flows: 1, up: 1 << 20, down: 1 << 20, until: ctx}.run(s.pod(0), s.pod(1), s.pod(1).Addr)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			s.transfers.Add(1)
		case strings.Contains(err.Error(), "SHA-256"):
			s.t.Error(err)
		default:
			s.broken.Add(1)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond): // other tests need the processors, too
		}
	}
}

// report returns Markdown tables of what the faults cost and what the daemons have
// open.
func (s *soak) report(before, after []resources) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n| fault | times | pings | lost | most at once | longest silence |\n|---|---|---|---|---|---|\n")
	for _, f := range s.faults {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %d | %.0f ms |\n", f.name, f.times, f.pings, f.lost, f.most, pinger.Milliseconds(f.silence))
	}
	fmt.Fprintf(&b, "\n| | resident MiB | descriptors | goroutines | threads |\n|---|---|---|---|---|\n")
	for i := range s.daemons {
		for j, r := range []resources{before[i], after[i]} {
			fmt.Fprintf(&b, "| host %s, %s | %.1f | %d | %d | %d |\n", s.Hosts[i].Letter,
				[]string{"after the first round", "at the end"}[j], float64(r.resident)/1024, r.descriptors, r.goroutines, r.threads)
		}
	}
	fmt.Fprintf(&b, "\nTransfers of 1 MiB each way by TCP: %d, broken by a fault: %d\n", s.transfers.Load(), s.broken.Load())
	drops := s.daemons[1].status().Drops
	for _, way := range []struct {
		name   string
		counts map[string]uint64
	}{{"from pods", drops.TX}, {"to pods", drops.RX}} {
		var reasons []string
		for reason, n := range way.counts {
			reasons = append(reasons, fmt.Sprintf("%s %d", reason, n))
		}
		slices.Sort(reasons)
		fmt.Fprintf(&b, "Packets %s that host b has dropped: %s\n", way.name, strings.Join(append(reasons, "no others"), ", "))
	}
	return b.String()
}
