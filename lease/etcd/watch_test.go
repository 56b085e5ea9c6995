//go:build !noetcd

package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// watching is a running Watch whose updates are folded into a set, as the daemon
// does.
type watching struct {
	*network
	updates chan lease.Update
	stop    func() error

	set       lease.Set
	config    *lease.Config
	err       error // the last one sent
	losses    int   // updates that wrap lease.ErrLost
	snapshots int
	deleted   []lease.Key
}

func (n *network) watch(s *Store) *watching {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{network: n, updates: make(chan lease.Update)}
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, w.updates) }()
	var ended error
	w.stop = func() error {
		if cancel != nil {
			cancel()
			cancel, ended = nil, <-done
		}
		return ended
	}
	n.Cleanup(func() { w.stop() })
	return w
}

// next takes one update.
func (w *watching) next() lease.Update {
	w.Helper()
	u := testkit.Receive(w, "there is an update", w.updates, func() string { return fmt.Sprintf("leases: %v", w.leases()) })
	w.fold(u)
	return u
}

func (w *watching) fold(u lease.Update) {
	w.Helper()
	if u.Err != nil {
		if u.Put != nil || u.Delete != nil || u.Config != nil || u.Snapshot {
			w.Fatalf("an update with an error says more: %+v", u)
		}
		w.err = u.Err
		if errors.Is(u.Err, lease.ErrLost) {
			w.losses++
		}
		return
	}
	if u.Config != nil {
		w.config = u.Config
	}
	if u.Snapshot {
		w.snapshots++
	}
	w.deleted = append(w.deleted, u.Delete...)
	w.set.Apply(u)
}

// snapshot takes the first update.
func (w *watching) snapshot() {
	w.Helper()
	if u := w.next(); !u.Snapshot || u.Config == nil {
		w.Fatalf("the first update is %+v, want a snapshot with the config", u)
	}
}

// leases returns the set in the words of until.
func (w *watching) leases() []string {
	var all []string
	for _, l := range w.set.Leases() {
		all = append(all, fmt.Sprintf("%s of %s", l.Key(), l.PublicIP))
	}
	return all
}

// until takes updates until the leases are these.
func (w *watching) until(leases ...string) {
	w.Helper()
	for !slices.Equal(w.leases(), leases) {
		w.next()
	}
}

// untilErr takes updates until one has an error with the text in it.
func (w *watching) untilErr(text string) {
	w.Helper()
	for {
		if u := w.next(); u.Err != nil && strings.Contains(u.Err.Error(), text) {
			return
		}
	}
}

// notLost checks that no update has reported a loss of the own lease.
func (w *watching) notLost() {
	w.Helper()
	if w.losses > 0 {
		w.Errorf("the own lease was reported as lost: %v", w.err)
	}
}

func TestAWatchSendsASnapshotAndThenChanges(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.1.0-24", value(1))
	w := n.watch(n.store())
	w.snapshot()
	w.until("10.5.1.0-24 of 192.0.2.1")
	n.put("subnets/10.5.2.0-24", value(2))
	w.until("10.5.1.0-24 of 192.0.2.1", "10.5.2.0-24 of 192.0.2.2")
	n.put("subnets/10.5.2.0-24", value(3))
	w.until("10.5.1.0-24 of 192.0.2.1", "10.5.2.0-24 of 192.0.2.3")
	n.delete("subnets/10.5.1.0-24")
	w.until("10.5.2.0-24 of 192.0.2.3")
	if w.snapshots != 1 {
		t.Errorf("%d snapshots, want one and then changes", w.snapshots)
	}
	if err := w.stop(); !errors.Is(err, context.Canceled) {
		t.Errorf("Watch returned %v", err)
	}
}

func TestManyChangesOfOneLeaseEndInTheLast(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	w := n.watch(n.store())
	w.snapshot()
	for i := range 300 {
		n.put("subnets/10.5.1.0-24", value(i))
		n.delete("subnets/10.5.1.0-24")
	}
	n.put("subnets/10.5.1.0-24", value(7))
	n.put("subnets/10.5.2.0-24", value(8))
	w.until("10.5.1.0-24 of 192.0.2.7", "10.5.2.0-24 of 192.0.2.8")
}

func TestAnUnreadableLeaseIsLoggedOnceAndPassedOver(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.1.0-24", "rubbish")
	n.put("subnets/10.5.2.0-24", value(2))
	n.put("subnets/somewhere", value(3))
	n.put("subnets/10.5.4.0-24", `{"PublicIP":"0.0.0.0","PublicIPv6":null}`) // reserved for nobody
	s := n.store()
	w := n.watch(s)
	w.snapshot()
	w.until("10.5.2.0-24 of 192.0.2.2")
	// What was good before stays.
	n.put("subnets/10.5.2.0-24", `{"PublicIP":7}`)
	n.put("subnets/10.5.5.0-24", value(5))
	w.until("10.5.2.0-24 of 192.0.2.2", "10.5.5.0-24 of 192.0.2.5")
	if _, err := s.Leases(n.ctx()); err != nil { // another reader of the same
		t.Error(err)
	}
	// Mended, removed.
	n.put("subnets/10.5.2.0-24", value(22))
	n.put("subnets/10.5.1.0-24", value(1))
	n.delete("subnets/somewhere")
	w.until("10.5.1.0-24 of 192.0.2.1", "10.5.2.0-24 of 192.0.2.22", "10.5.5.0-24 of 192.0.2.5")
	lines := n.log.Lines("cannot read lease in etcd")
	if len(lines) != 3 || !strings.Contains(lines[0], n.prefix+"/subnets/10.5.1.0-24") || !strings.Contains(lines[2], "10.5.2.0-24") {
		t.Errorf("the log has %d lines, want one for each of three: %q", len(lines), lines)
	}
	w.notLost()
}

func TestASubnetReservedWithoutANodeIsNoLongerANodes(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	n.put("subnets/10.5.1.0-24", value(1))
	w := n.watch(n.store())
	w.snapshot()
	n.put("subnets/10.5.1.0-24", `{"PublicIP":"0.0.0.0","PublicIPv6":null}`)
	w.until()
}

func TestTheOwnLeaseIsAmongTheOthersWithItsExpiration(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1))
	w := n.watch(s)
	w.snapshot()
	if l, _ := w.set.Get(own.Key()); !l.Equal(*own) || !l.Expiration.Equal(own.Expiration) {
		t.Errorf("the snapshot has %+v, want %+v", l, own)
	}
	// Stock flannel in our place, or an operator, puts it on another etcd lease.
	id, err := n.client.Grant(n.ctx(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	n.put("subnets/"+string(own.Key()), value(1), clientv3.WithLease(id.ID))
	for {
		u := w.next()
		if len(u.Put) == 1 {
			if left := time.Until(u.Put[0].Expiration); left < 50*time.Minute || left > time.Hour {
				t.Errorf("expires in %s, want an hour", left)
			}
			break
		}
	}
	w.notLost()
}

func TestALostLeaseIsAnErrorAndNotADeletion(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	n.put("subnets/10.5.1.0-24", value(2))
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	n.revoke(n.all()[1].lease)
	w.untilErr("lease 10.5.52.0-24: lease lost: it has expired or was deleted")
	// The rest continues.
	n.put("subnets/10.5.3.0-24", value(3))
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.3.0-24 of 192.0.2.3", "10.5.52.0-24 of 192.0.2.1")

	if l := n.acquire(s, node(1), "10.5.52.0/24"); l.Key() != own.Key() {
		t.Fatalf("got %s back, want %s", l.Key(), own.Key())
	}
	n.delete("subnets/10.5.3.0-24")
	w.until("10.5.1.0-24 of 192.0.2.2", "10.5.52.0-24 of 192.0.2.1")
	if w.losses != 1 || slices.Contains(w.deleted, own.Key()) {
		t.Errorf("%d losses reported, want 1; deleted %v", w.losses, w.deleted)
	}
}

func TestATakenLeaseIsReportedWithTheNewOwner(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	n.put("subnets/10.5.52.0-24", value(2)) // as stock flannel's renewal does
	w.untilErr("lease 10.5.52.0-24: lease lost: it now belongs to 192.0.2.2")
	// The node moves on; its old subnet is the other's.
	l := n.acquire(s, node(1), "10.5.52.0/24")
	if l.Subnet.String() == "10.5.52.0/24" {
		t.Fatal("took back what is another's")
	}
	want := []string{"10.5.52.0-24 of 192.0.2.2", string(l.Key()) + " of 192.0.2.1"}
	if l.Subnet.Addr().Less(previous("10.5.52.0/24").Subnet.Addr()) {
		slices.Reverse(want)
	}
	w.until(want...)
	if w.losses != 1 {
		t.Errorf("%d losses reported, want 1", w.losses)
	}
}

func TestALostLeaseGoesOnceTheNodeHasAnother(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	n.acquire(s, node(1), "10.5.52.0/24")
	w := n.watch(s)
	w.snapshot()
	n.delete("subnets/10.5.52.0-24")
	w.untilErr("lease lost")
	l := n.acquire(s, node(1), "10.5.77.0/24")
	w.until("10.5.77.0-24 of 192.0.2.1")
	if l.Subnet.String() != "10.5.77.0/24" || w.losses != 1 {
		t.Errorf("got %s, %d losses reported", l.Subnet, w.losses)
	}
}

// TestAnAnswerWithAnOldRevisionIsNotAReplacedEtcd: the answers to the two watches are
// read one after the other, while other nodes write, and a member may be behind.
func TestAnAnswerWithAnOldRevisionIsNotAReplacedEtcd(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, ipv4Only)
	s := n.store()
	snap, err := s.read(n.ctx(), retryable)
	if err != nil {
		t.Fatal(err)
	}
	created := func(cluster uint64, revision int64) clientv3.WatchResponse {
		return clientv3.WatchResponse{Created: true, Header: &etcdserverpb.ResponseHeader{ClusterId: cluster, Revision: revision}}
	}
	w := &watcher{Store: s, cluster: snap.header.ClusterId, leasesAt: snap.revision, configAt: snap.revision - 1}
	for name, resp := range map[string]clientv3.WatchResponse{
		"older than what the other watch has received": created(w.cluster, w.configAt),
		"of a member that is behind":                   created(w.cluster, w.configAt-1),
	} {
		if err := w.check(n.ctx(), resp, true, w.configAt); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.leasesAt = snap.revision + 1_000_000_000
	if err := w.check(n.ctx(), created(w.cluster, snap.revision), true, w.leasesAt); !errors.Is(err, errReplaced) {
		t.Errorf("an etcd that was put back: %v", err)
	}
	w.leasesAt, w.cluster = snap.revision, w.cluster+1
	if err := w.check(n.ctx(), created(w.cluster-1, snap.revision), true, w.leasesAt); !errors.Is(err, errReplaced) {
		t.Errorf("another cluster: %v", err)
	}
}

// TestALongKeyMakesAShortLine: a host that may write to etcd cannot fill disks with logs.
func TestALongKeyMakesAShortLine(t *testing.T) {
	t.Parallel()
	n := newNetwork(t, ipv4Only)
	n.put("subnets/"+strings.Repeat("x", 5000), value(2))
	n.put("subnets/10.5.1.0-24", `{"PublicIP":"`+strings.Repeat("y", 5000)+`"}`)
	w := n.watch(n.store())
	w.snapshot()
	lines := n.log.Lines("cannot read lease in etcd")
	if len(lines) != 2 {
		t.Fatalf("%d lines, want 2: %q", len(lines), lines)
	}
	for _, line := range lines {
		if len(line) > 1000 {
			t.Errorf("a line of %d bytes: %.200s…", len(line), line)
		}
	}
}
