//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

func TestAStartWaitsForEtcdAndSaysSo(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	server.Kill()

	s := n.store()
	err := n.cutOff(s, "connection refused")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "etcd "+server.Endpoint+": read config "+n.prefix+"/config: ") ||
		!strings.Contains(err.Error(), "/config: dial tcp ") || !strings.Contains(err.Error(), "connection refused; check that etcd is running") {
		t.Errorf("got %v, want endpoint, operation, cause and remedy", err)
	}

	got := make(chan *lease.Lease, 1)
	ctx := n.ctx()
	go func() {
		l, err := s.Acquire(ctx, node(1), lease.Previous{})
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	testkit.Eventually(t, "the log says that etcd is not there", func() bool { return len(n.log.Lines("connection refused")) > 0 })
	server.Restart(t)
	if l := <-got; l == nil || n.only().key != "/subnets/"+string(l.Key()) {
		t.Errorf("got %v", l)
	}
	if lines := n.log.Lines("retrying"); len(lines) > 3 {
		t.Errorf("the log has %d lines within seconds: %q", len(lines), lines)
	}
	if len(n.log.Lines("etcd answers again")) == 0 {
		t.Error("the log does not say that etcd is back")
	}
}

// flannel's default names two endpoints, of which one is there as a rule.
func TestOneEndpointThatAnswersIsEnough(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.endpoints = []string{"http://127.0.0.1:1", shared.Endpoint}
	s := n.store()
	w := n.watch(s)
	w.snapshot()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w.until("10.5.52.0-24 of 192.0.2.1")
	if _, err := s.Renew(n.ctx(), own); err != nil {
		t.Error(err)
	}
}

func TestAWatchOutlivesACrashOfEtcd(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	for i := range 3 {
		server.Kill()
		server.Restart(t)
		n.put(fmt.Sprintf("subnets/10.5.%d.0-24", i+1), value(i+2))
		for {
			if _, ok := w.set.Get(lease.Key(fmt.Sprintf("10.5.%d.0-24", i+1))); ok {
				break
			}
			w.next()
		}
		if _, err := s.Renew(n.ctx(), own); err != nil {
			t.Fatal(err)
		}
	}
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.2.0-24 of 192.0.2.3", "10.5.3.0-24 of 192.0.2.4", "10.5.52.0-24 of 192.0.2.1")
	w.notLost()
	if w.snapshots != 1 {
		t.Errorf("%d snapshots, want what was missed as changes", w.snapshots)
	}
}

func TestACompactionWhileTheNodeWasAwayLosesNothing(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	n.put("subnets/10.5.1.0-24", value(2))
	n.put("subnets/10.5.2.0-24", value(3))
	n.put("subnets/10.5.4.0-24", value(5))
	relay := etcdtest.NewRelay(t, server.Endpoint)
	s := n.store(func(o *Options) { o.Endpoints = []string{relay.Endpoint} })
	n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()

	relay.Cut()
	relay.Break()
	n.delete("subnets/10.5.1.0-24")
	n.put("subnets/10.5.2.0-24", value(22))
	n.put("subnets/10.5.3.0-24", value(4))
	n.put("subnets/10.5.4.0-24", "rubbish")
	resp, err := n.client.Get(n.ctx(), "any")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Compact(n.ctx(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	relay.Heal()
	w.until("10.5.2.0-24 of 192.0.2.22", "10.5.3.0-24 of 192.0.2.4", "10.5.4.0-24 of 192.0.2.5", "10.5.52.0-24 of 192.0.2.1")
	if w.snapshots != 2 {
		t.Errorf("%d snapshots, want another after the compaction", w.snapshots)
	}
	w.notLost()
	n.delete("subnets/10.5.3.0-24") // and the watch continues
	w.until("10.5.2.0-24 of 192.0.2.22", "10.5.4.0-24 of 192.0.2.5", "10.5.52.0-24 of 192.0.2.1")
}

func TestAPartitionShorterThanTheLeaseChangesNothing(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	relay := etcdtest.NewRelay(t, server.Endpoint)
	s := n.store(func(o *Options) { o.Endpoints = []string{relay.Endpoint} })
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	relay.Cut()
	renewed := make(chan error, 1)
	ctx := n.ctx()
	go func() {
		_, err := s.Renew(ctx, own)
		renewed <- err
	}()
	n.put("subnets/10.5.1.0-24", value(2))
	// The request is given up and sent again, several times.
	testkit.Eventually(t, "the log says that etcd does not answer", func() bool { return len(n.log.Lines("no answer in time")) > 0 })
	relay.Heal()
	if err := <-renewed; err != nil {
		t.Errorf("a renewal begun in the partition: %v", err)
	}
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	w.notLost()
	n.oneOwner()
}

func TestALeaseLostInALongPartitionIsReportedAtItsEnd(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	relay := etcdtest.NewRelay(t, server.Endpoint)
	s := n.store(func(o *Options) { o.Endpoints = []string{relay.Endpoint} })
	s.ttl = 2 * time.Second
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	relay.Cut()
	relay.Break()
	testkit.Eventually(t, "the lease has expired", func() bool { return len(n.all()) == 0 })
	n.acquire(n.store(), node(2), "10.5.52.0/24")
	select {
	case u := <-w.updates:
		t.Fatalf("an update in the partition: %+v", u)
	default:
	}
	relay.Heal()
	w.untilErr("lease 10.5.52.0-24: lease lost: ")
	w.until("10.5.52.0-24 of 192.0.2.2")
	if _, err := s.Renew(n.ctx(), own); !errors.Is(err, lease.ErrLost) {
		t.Errorf("Renew returned %v", err)
	}
	s.ttl = defaultTTL
	if l := n.acquire(s, node(1), "10.5.52.0/24"); l.Key() == own.Key() {
		t.Error("took back what is another's")
	}
	n.oneOwner()
}

func TestARestoredEtcdIsReadAgain(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, ipv4Only)
	n.put("subnets/10.5.1.0-24", value(2))
	s := n.store()
	n.acquire(s, node(1), "10.5.52.0/24")
	for range 20 { // which revisions the new one has yet to reach
		n.put("subnets/10.5.2.0-24", value(3))
	}
	w := n.watch(s)
	w.snapshot()

	server.Kill()
	server.Wipe(t)
	server.Restart(t)
	w.untilErr("no network config") // and pods keep talking
	before := []string{"10.5.1.0-24 of 192.0.2.2", "10.5.2.0-24 of 192.0.2.3", "10.5.52.0-24 of 192.0.2.1"}
	if !slices.Equal(w.leases(), before) {
		t.Errorf("an empty etcd left %v", w.leases())
	}
	n.put("subnets/10.5.1.0-24", value(2))
	n.put("config", ipv4Only)
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	w.untilErr("lease lost")
	n.acquire(s, node(1), "10.5.52.0/24")
	n.delete("subnets/10.5.1.0-24")
	w.until("10.5.52.0-24 of 192.0.2.1")
	if w.losses != 1 || w.deleted[0] == "10.5.52.0-24" {
		t.Errorf("%d losses, deleted %v", w.losses, w.deleted)
	}
}

func TestAFullEtcdIsWaitedFor(t *testing.T) {
	t.Parallel()
	server := etcdtest.Start(t, etcdtest.Options{Flags: []string{"--quota-backend-bytes=8388608"}})
	n := networkOn(t, server, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1))
	w := n.watch(s)
	w.snapshot()
	ctx := n.ctx()
	for i := 0; ; i++ {
		_, err := n.client.Put(ctx, fmt.Sprintf("filler/%d", i), strings.Repeat("x", 1<<20))
		if errors.Is(err, rpctypes.ErrNoSpace) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	renewed := make(chan error, 1)
	go func() {
		_, err := s.Renew(ctx, own)
		renewed <- err
	}()
	testkit.Eventually(t, "the log says what to do", func() bool { return len(n.log.Lines("etcd's database is full: compact and defragment it")) > 0 })
	// Which is this.
	resp, err := n.client.Delete(ctx, "filler/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.Defragment(ctx, server.Endpoint); err != nil {
		t.Fatal(err)
	}
	if _, err := n.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		t.Fatal(err)
	}
	if err := <-renewed; err != nil {
		t.Error(err)
	}
	n.put("subnets/10.5.1.0-24", value(2))
	for {
		if _, ok := w.set.Get("10.5.1.0-24"); ok {
			break
		}
		w.next()
	}
	w.notLost()
}

func TestTwoOfThreeMembersAreEnough(t *testing.T) {
	t.Parallel()
	servers := etcdtest.StartCluster(t, 3, etcdtest.Options{})
	n := networkOn(t, servers[0], ipv4Only)
	for _, s := range servers[1:] {
		n.endpoints = append(n.endpoints, s.Endpoint)
	}
	n.client.SetEndpoints(n.endpoints...)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	want := []string{"10.5.52.0-24 of 192.0.2.1"}
	for i, server := range servers { // one of them is the leader
		server.Kill()
		if _, err := s.Renew(n.ctx(), own); err != nil {
			t.Fatal(err)
		}
		n.acquire(n.store(), node(i+2), fmt.Sprintf("10.5.%d.0/24", i+1))
		want = slices.Insert(want, i, fmt.Sprintf("10.5.%d.0-24 of 192.0.2.%d", i+1, i+2))
		w.until(want...)
		server.Restart(t)
	}

	// One is too few: nothing happens, until there are two again.
	servers[0].Kill()
	servers[1].Kill()
	renewed := make(chan error, 1)
	ctx := n.ctx()
	go func() {
		_, err := s.Renew(ctx, own)
		renewed <- err
	}()
	testkit.Eventually(t, "the log says that etcd has no leader", func() bool {
		return len(n.log.Lines("retrying"))+len(n.log.Lines("etcd watch interrupted")) > 0
	})
	servers[1].Restart(t)
	if err := <-renewed; err != nil {
		t.Error(err)
	}
	n.put("subnets/10.5.4.0-24", value(5))
	w.until(slices.Insert(want, 3, "10.5.4.0-24 of 192.0.2.5")...)
	w.notLost()
	n.oneOwner()
}

// TestNoSubnetHasTwoOwnersWhateverHappens lets nodes start, renew, lose their
// leases and start again, on few subnets and for short terms, while etcd crashes
// and their wires are cut, and reads etcd's log then.
func TestNoSubnetHasTwoOwnersWhateverHappens(t *testing.T) {
	t.Parallel()
	const nodes = 12
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, `{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fc00:5::/48","SubnetMax":"10.5.14.0","IPv6SubnetMax":"fc00:5:0:e::"}`)
	ctx, cancel := context.WithCancel(n.ctx())
	defer cancel()
	var (
		all    sync.WaitGroup
		terms  [nodes]int // how often a node has had a lease
		relays [nodes]*etcdtest.Relay
		mu     sync.Mutex
	)
	for i := range nodes {
		relays[i] = etcdtest.NewRelay(t, server.Endpoint)
		all.Go(func() {
			for ctx.Err() == nil {
				s := n.store(func(o *Options) { o.Endpoints = []string{relays[i].Endpoint} })
				s.ttl = 2 * time.Second
				own, err := s.Acquire(ctx, node(i), lease.Previous{})
				if err != nil {
					if ctx.Err() == nil {
						t.Errorf("node %d: %v", i, err)
					}
					return
				}
				mu.Lock()
				terms[i]++
				mu.Unlock()
				// Some renewals, then a crash of the node, after which etcd
				// lets the lease expire or the node takes it back.
				for range rand.IntN(4) {
					pause(ctx, time.Duration(rand.IntN(500))*time.Millisecond)
					if own, err = s.Renew(ctx, own); err != nil {
						if ctx.Err() == nil && !errors.Is(err, lease.ErrLost) {
							t.Errorf("node %d: %v", i, err)
						}
						break
					}
				}
				s.Close()
				pause(ctx, time.Duration(rand.IntN(3000))*time.Millisecond)
			}
		})
	}
	done := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Min(terms[:]) >= 3
	}
	for round := 0; !done() || round < 2; round++ {
		cut := relays[rand.IntN(nodes)]
		cut.Cut()
		pause(ctx, time.Second)
		server.Kill()
		server.Restart(t)
		cut.Heal()
		if ctx.Err() != nil {
			t.Fatalf("terms of the nodes after %s: %v", testkit.Patience, terms)
		}
	}
	cancel()
	all.Wait()
	if events := etcdtest.CheckHistory(t, n.client, n.prefix); events < 3*nodes {
		t.Errorf("%d events in the history", events)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
