//go:build !noetcd

package etcd

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/lease"
)

// TestFiveThousandLeasesAreAllThere prints how long the work of a large network
// takes. Times depend on the machine, so only completeness is checked.
func TestFiveThousandLeasesAreAllThere(t *testing.T) {
	const (
		leases = 5000
		batch  = 100 // puts in a transaction; etcd accepts up to 128
	)
	server := etcdtest.Start(t, etcdtest.Options{})
	n := networkOn(t, server, `{"Network":"10.0.0.0/8"}`)
	ctx := n.ctx()
	key := func(i int) string {
		return fmt.Sprintf("subnets/10.%d.%d.0-24", 1+i/256, i%256)
	}
	for i := 0; i < leases; i += batch {
		var puts []clientv3.Op
		for j := i; j < i+batch; j++ {
			// An etcd lease each, as nodes have them.
			l, err := n.client.Grant(ctx, 86400)
			if err != nil {
				t.Fatal(err)
			}
			puts = append(puts, clientv3.OpPut(n.prefix+"/"+key(j), value(j), clientv3.WithLease(l.ID)))
		}
		if _, err := n.client.Txn(ctx).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}

	begin := time.Now()
	s := n.store()
	w := n.watch(s)
	w.snapshot()
	t.Logf("open to the first snapshot: %s", time.Since(begin))
	for i := range leases {
		a := netip.AddrFrom4([4]byte{10, byte(1 + i/256), byte(i % 256), 0})
		l, ok := w.set.Get(lease.Lease{Subnet: netip.PrefixFrom(a, 24)}.Key())
		if !ok || l.PublicIP != node(i).PublicIP {
			t.Fatalf("lease %d is %+v", i, l)
		}
	}
	if w.set.Len() != leases {
		t.Errorf("%d leases, want %d", w.set.Len(), leases)
	}

	begin = time.Now()
	n.put(key(17), value(leases))
	w.next()
	t.Logf("a change to its update: %s", time.Since(begin))

	begin = time.Now()
	own := n.acquire(s, node(leases+1))
	t.Logf("acquire: %s", time.Since(begin))
	w.next()
	if l, _ := w.set.Get(own.Key()); !l.Equal(*own) {
		t.Errorf("the watch has %+v, want %+v", l, own)
	}

	begin = time.Now()
	all, err := s.Leases(ctx)
	if err != nil || len(all) != leases+1 {
		t.Fatalf("%d leases listed, %v", len(all), err)
	}
	t.Logf("list with the time that each has left: %s", time.Since(begin))
	for _, l := range all {
		if l.Expiration.IsZero() && l.PublicIP != node(leases).PublicIP {
			t.Fatalf("%s has no expiration", l.Key())
		}
	}
}
