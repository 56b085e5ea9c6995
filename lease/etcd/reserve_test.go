//go:build !noetcd

package etcd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/lease"
)

func subnet(s string) lease.Lease { return lease.Lease{Subnet: netip.MustParsePrefix(s)} }

func subnetOf(s string, a lease.Attrs) lease.Lease {
	return lease.Lease{Subnet: netip.MustParsePrefix(s), Attrs: a}
}

func TestAReservedSubnetBelongsToItsNodeOnly(t *testing.T) {
	n := newNetwork(t, `{"Network":"10.5.0.0/16","SubnetMin":"10.5.7.0","SubnetMax":"10.5.9.0"}`)
	s := n.store()
	for range 2 { // the second time changes nothing
		if l, err := s.Reserve(n.ctx(), subnetOf("10.5.7.0/24", node(1))); err != nil || !l.Expiration.IsZero() {
			t.Fatalf("got %v, %v", l, err)
		}
		if l, err := s.Reserve(n.ctx(), subnet("10.5.8.0/24")); err != nil || l.Key() != "10.5.8.0-24" {
			t.Fatalf("got %v, %v", l, err)
		}
	}
	if l := n.acquire(s, node(2), "10.5.7.0/24"); l.Subnet.String() != "10.5.9.0/24" {
		t.Errorf("another node got %s", l.Subnet)
	}
	if l := n.acquire(n.store(), node(1)); l.Subnet.String() != "10.5.7.0/24" || !l.Expiration.IsZero() {
		t.Errorf("the node got %+v", l)
	}
	if _, err := s.Acquire(n.ctx(), node(3), lease.Previous{}); !errors.Is(err, lease.ErrNoLease) {
		t.Errorf("got %v, want none left", err)
	}
	n.oneOwner()
}

func TestWhatCannotBeReservedIsRefusedWithTheReason(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	n.acquire(s, node(1), "10.5.7.0/24")
	n.put("subnets/10.5.32.0-20", value(2))
	n.put("subnets/10.5.9.0-24", "rubbish")
	before := n.all()
	for _, tt := range []struct {
		lease lease.Lease
		want  string
	}{
		{subnet("10.6.0.0/24"), "reserve " + n.prefix + "/subnets/10.6.0.0-24: the network allocates /24 subnets from 10.5.1.0 to 10.5.255.0"},
		{subnet("10.5.7.0/25"), "the network allocates /24 subnets"},
		{subnetOf("10.5.7.0/24", node(2)), "10.5.7.0-24 is taken by 192.0.2.1; choose another subnet, or name the node that has it"},
		{subnetOf("10.5.33.0/24", node(3)), "10.5.32.0-20 is taken by 192.0.2.2"},
		{subnet("10.5.9.0/24"), "delete the key " + n.prefix + "/subnets/10.5.9.0-24 first"},
	} {
		if l, err := s.Reserve(n.ctx(), tt.lease); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, %v, want %s", tt.lease.Key(), l, err, tt.want)
		}
	}
	for key, want := range map[string]string{
		"10.5.7.0/24": "it is the lease of 192.0.2.1, not a reservation; a lease expires a day after its node stops",
		"10.5.8.0/24": "no such reservation; list all with twill leases",
	} {
		if l, err := s.Release(n.ctx(), subnet(key)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("release %s: got %v, %v, want %s", key, l, err, want)
		}
	}
	for i, got := range n.all() {
		if got != before[i] {
			t.Errorf("etcd has %+v, had %+v", got, before[i])
		}
	}
}

func TestReserveAndReleaseDoNotDisturbTheNodeThatHasTheSubnet(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	own := n.acquire(s, node(1), "10.5.7.0/24")
	w := n.watch(s)
	w.snapshot()
	operator := n.store()
	if l, err := operator.Reserve(n.ctx(), subnet("10.5.7.0/24")); err != nil || l.PublicIP != own.PublicIP {
		t.Fatalf("got %v, %v", l, err)
	}
	if got := n.only(); got.lease != clientv3.NoLease || got.value != value(1) {
		t.Errorf("etcd has %+v, want the same value for good", got)
	}
	for u := w.next(); len(u.Put) == 0 || !u.Put[0].Expiration.IsZero(); {
		u = w.next()
	}
	if own, err := s.Renew(n.ctx(), own); err != nil || !own.Expiration.IsZero() {
		t.Errorf("renewed: %+v, %v", own, err)
	}

	l, err := operator.Release(n.ctx(), subnet("10.5.7.0/24"))
	if err != nil || time.Until(l.Expiration) < 23*time.Hour {
		t.Fatalf("got %+v, %v", l, err)
	}
	if got := n.only(); got.lease == clientv3.NoLease || got.value != value(1) {
		t.Errorf("etcd has %+v, want a lease", got)
	}
	// The node learns that it must renew now.
	for u := w.next(); len(u.Put) == 0 || u.Put[0].Expiration.IsZero(); {
		u = w.next()
	}
	if own, err := s.Renew(n.ctx(), own); err != nil || own.Expiration.IsZero() {
		t.Errorf("renewed: %+v, %v", own, err)
	}
	w.notLost()
}

func TestAReservationWithoutANodeIsDeletedWhenReleased(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	if _, err := s.Reserve(n.ctx(), subnet("10.5.7.0/24")); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Release(n.ctx(), subnet("10.5.7.0/24")); err != nil || l != nil || len(n.all()) != 0 {
		t.Errorf("got %v, %v, etcd has %v", l, err, n.all())
	}
}

func TestLeasesAreListedWithTheTimeTheyHaveLeft(t *testing.T) {
	n := newNetwork(t, ipv4Only)
	s := n.store()
	n.acquire(s, node(1), "10.5.7.0/24")
	hour, err := n.client.Grant(n.ctx(), 3600)
	if err != nil {
		t.Fatal(err)
	}
	n.put("subnets/10.5.8.0-24", value(2), clientv3.WithLease(hour.ID))
	n.put("subnets/10.5.6.0-24", value(3))
	n.put("subnets/10.5.5.0-24", "rubbish")
	leases, err := s.Leases(n.ctx())
	if err != nil || len(leases) != 3 {
		t.Fatalf("got %v, %v", leases, err)
	}
	for i, want := range []struct {
		key      lease.Key
		from, to time.Duration
	}{
		{"10.5.6.0-24", 0, 0},
		{"10.5.7.0-24", 23 * time.Hour, 24 * time.Hour},
		{"10.5.8.0-24", 59 * time.Minute, time.Hour},
	} {
		left := time.Until(leases[i].Expiration)
		if leases[i].Expiration.IsZero() {
			left = 0
		}
		if leases[i].Key() != want.key || left < want.from || left > want.to {
			t.Errorf("lease %d is %s with %s left, want %s with %s", i, leases[i].Key(), left, want.key, want.to)
		}
	}
}
