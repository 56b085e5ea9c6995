//go:build !noetcd

package etcd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

func TestARenewalExtendsTheLeaseAndLeavesTheRest(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	s.ttl = time.Hour // as if most of the day were over
	own := n.acquire(s, node(1))
	before := n.only()
	s.ttl = defaultTTL
	renewed, err := s.Renew(n.ctx(), own)
	if err != nil {
		t.Fatal(err)
	}
	after := n.only()
	granted, _ := n.ttl(after.lease)
	if after.key != before.key || after.value != before.value || granted != 86400 {
		t.Errorf("before %+v, after %+v for %d s", before, after, granted)
	}
	if !renewed.Equal(*own) || time.Until(renewed.Expiration) < 23*time.Hour {
		t.Errorf("got %+v", renewed)
	}
}

func TestALeaseThatIsNotRenewedExpiresWhateverTheClockSays(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	s.ttl = 2 * time.Second // etcd rounds up what is below its election time
	own := n.acquire(s, node(1))
	// The expiration is that of a clock which nobody can set.
	if !strings.Contains(own.Expiration.String(), " m=+") {
		t.Errorf("expiration %s has no monotonic reading", own.Expiration)
	}
	testkit.Eventually(t, "the lease has expired", func() bool { return len(n.all()) == 0 })
	if now := time.Now(); now.Before(own.Expiration) {
		t.Errorf("etcd let the lease expire %s before the store expects it", own.Expiration.Sub(now))
	}
	if _, err := s.Renew(n.ctx(), own); !errors.Is(err, lease.ErrLost) || !strings.Contains(err.Error(), "has expired or was deleted") {
		t.Errorf("got %v, want ErrLost", err)
	}
	if len(n.all()) != 0 {
		t.Error("a renewal has brought back a lease that was over")
	}
}

func TestARenewalWritesNothingOverAnotherNodesLease(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	n.revoke(n.only().lease)
	n.acquire(n.store(), node(2), "10.5.52.0/24")
	theirs := n.only()
	_, err := s.Renew(n.ctx(), own)
	if !errors.Is(err, lease.ErrLost) || !strings.Contains(err.Error(), "lease 10.5.52.0-24: lease lost: it now belongs to 192.0.2.2") {
		t.Errorf("got %v, want ErrLost with the new owner", err)
	}
	if n.only() != theirs {
		t.Errorf("etcd has %v, want what was there, %v", n.only(), theirs)
	}
	n.oneOwner()
}

// TestALeaseThatIsTakenAmidARenewalStaysTaken has the other node come between
// the look at the lease and the write.
func TestALeaseThatIsTakenAmidARenewalStaysTaken(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	e, err := s.entryOf(n.ctx(), "renew", own)
	if err != nil {
		t.Fatal(err)
	}
	n.revoke(n.only().lease)
	n.acquire(n.store(), node(2), "10.5.52.0/24")
	theirs := n.only()
	g := grant{store: s}
	if _, err := s.put(n.ctx(), "renew", e, own.Attrs, value(1), &g); !errors.Is(err, errConflict) {
		t.Errorf("got %v, want a conflict", err)
	}
	if n.only() != theirs {
		t.Errorf("etcd has %v, want %v", n.only(), theirs)
	}
	n.oneOwner()
}

func TestANodeWhoseAddressChangesKeepsItsSubnet(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	w := n.watch(s)
	w.snapshot()
	own := n.acquire(s, node(1), "10.5.52.0/24")
	w.until("10.5.52.0-24 of 192.0.2.1")
	moved := *own
	moved.PublicIP = netip.MustParseAddr("192.0.2.99")
	if _, err := s.Renew(n.ctx(), &moved); err != nil {
		t.Fatal(err)
	}
	if got := n.only(); got.key != "/subnets/10.5.52.0-24" || got.value != value(99) {
		t.Errorf("etcd has %+v", got)
	}
	w.until("10.5.52.0-24 of 192.0.2.99")
	w.notLost()
}

func TestALeaseThatBecomesAReservationIsRenewedAsOne(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1))
	n.put("subnets/"+string(own.Key()), value(1)) // as flannel's documentation says, without --lease
	l, err := s.Renew(n.ctx(), own)
	if got := n.only(); err != nil || !l.Expiration.IsZero() || got.lease != clientv3.NoLease {
		t.Errorf("got %+v, %v, etcd has %+v", l, err, got)
	}
}

func TestALeaseUnderRubbishIsStillOursWhileTheEtcdLeaseIs(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1))
	key := "subnets/" + string(own.Key())
	n.put(key, "rubbish", clientv3.WithIgnoreLease())
	if _, err := s.Renew(n.ctx(), own); err != nil || n.only().value != value(1) {
		t.Errorf("got %v, etcd has %+v, want the rubbish written over", err, n.only())
	}
	n.put(key, "rubbish") // on no etcd lease
	if _, err := s.Renew(n.ctx(), own); !errors.Is(err, lease.ErrLost) || n.only().value != "rubbish" {
		t.Errorf("got %v, etcd has %+v, want ErrLost", err, n.only())
	}
}

func TestANodeTakesItsSubnetBackAfterALoss(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1))
	n.delete("subnets/" + string(own.Key()))
	if _, err := s.Renew(n.ctx(), own); !errors.Is(err, lease.ErrLost) {
		t.Fatalf("got %v, want ErrLost", err)
	}
	again := n.acquire(s, node(1), own.Subnet.String())
	if _, err := s.Renew(n.ctx(), again); again.Key() != own.Key() || err != nil {
		t.Errorf("got %s, %v, want %s", again.Key(), err, own.Key())
	}
}
