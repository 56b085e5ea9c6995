package etcdtest

import (
	"context"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/gaissmai/bart"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// CheckHistory fails the test if, at any revision of etcd, two nodes had a lease of
// one subnet or of overlapping subnets, or a lease passed from one node to another
// without having ended. It reads etcd's log from its first revision, so the log must
// not have been compacted. It returns how many events it has checked.
func CheckHistory(t testing.TB, client *clientv3.Client, prefix string) int {
	t.Helper()
	subnets := path.Join(prefix, "subnets") + "/"
	events := slices.DeleteFunc(history(t, client, path.Clean(prefix)+"/"), func(e *clientv3.Event) bool {
		return !strings.HasPrefix(string(e.Kv.Key), subnets)
	})
	for _, fault := range Faults(events, subnets) {
		t.Errorf("history of %s: %s", prefix, fault)
	}
	return len(events)
}

// history returns all events up to now of the keys that begin with keys.
func history(t testing.TB, client *clientv3.Client, keys string) []*clientv3.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testkit.Patience)
	defer cancel()
	// Writing an otherwise meaningless key marks the end.
	end, err := client.Put(ctx, keys+"end-of-history", "")
	if err != nil {
		t.Fatal(err)
	}
	var events []*clientv3.Event
	for resp := range client.Watch(ctx, keys, clientv3.WithPrefix(), clientv3.WithRev(1)) {
		if err := resp.Err(); err != nil {
			t.Fatalf("read etcd's log from its first revision: %v", err)
		}
		for _, e := range resp.Events {
			if e.Kv.ModRevision == end.Header.Revision {
				if _, err := client.Delete(ctx, keys+"end-of-history"); err != nil {
					t.Fatal(err)
				}
				return events
			}
			events = append(events, e)
		}
	}
	t.Fatalf("read etcd's log: did not reach its end within %s", testkit.Patience)
	return nil
}

// Faults reports where in events, of keys under subnets, a subnet had two owners.
// Keys that name no subnet and values that name no node are skipped.
func Faults(events []*clientv3.Event, subnets string) []string {
	var (
		faults []string
		// held maps each key to the owner of its subnet.
		held = make(map[lease.Key]lease.Lease)
		// all holds the subnets of everything in held, of both families.
		all = new(bart.Table[lease.Key])
	)
	remove := func(k lease.Key) {
		for _, p := range held[k].Subnets() {
			all.Delete(p)
		}
		delete(held, k)
	}
	for _, e := range events {
		raw := string(e.Kv.Key)
		v4, v6, err := lease.ParseKey(lease.Key(raw[min(len(raw), len(subnets)):]))
		if err != nil {
			continue
		}
		now := lease.Lease{Subnet: v4, IPv6Subnet: v6}
		k := now.Key()
		was, taken := held[k]
		if e.Type == mvccpb.DELETE {
			remove(k)
			continue
		}
		if now.Attrs, err = lease.DecodeAttrs(e.Kv.Value); err != nil {
			continue
		}
		if taken && !sameNode(was, now) {
			faults = append(faults, fmt.Sprintf("revision %d: %s passes from %s to %s without having ended", e.Kv.ModRevision, k, node(was), node(now)))
		}
		remove(k)
		for _, p := range now.Subnets() {
			if other, ok := overlap(all, p); ok {
				faults = append(faults, fmt.Sprintf("revision %d: %s of %s overlaps %s of %s", e.Kv.ModRevision, k, node(now), other, node(held[other])))
			}
		}
		held[k] = now
		for _, p := range now.Subnets() {
			all.Insert(p, k)
		}
	}
	return faults
}

// overlap returns a key whose subnet overlaps p.
func overlap(all *bart.Table[lease.Key], p netip.Prefix) (lease.Key, bool) {
	for _, k := range all.Supernets(p) {
		return k, true
	}
	for _, k := range all.Subnets(p) {
		return k, true
	}
	return "", false
}

func sameNode(a, b lease.Lease) bool {
	return a.PublicIP.IsValid() && a.PublicIP == b.PublicIP || a.PublicIPv6.IsValid() && a.PublicIPv6 == b.PublicIPv6
}

func node(l lease.Lease) string {
	if l.PublicIP.IsValid() {
		return l.PublicIP.String()
	}
	return l.PublicIPv6.String()
}
