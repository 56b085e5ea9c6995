package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// awaitThird prepares three nodes and an etcd of so many members. Two of the nodes run;
// the subnet that is left for the third is that of its pod.
func awaitThird(t *testing.T, members int, opts etcdtest.Options) *etcdLab {
	t.Helper()
	l := serveEtcdCluster(t, newLab(t, labOptions{Options: netlab.Options{Hosts: 4}, nodes: 3, idle: true}), members, opts)
	l.put("config", `{"Network": "10.5.0.0/16", "SubnetMin": "10.5.1.0", "SubnetMax": "10.5.3.0", "Backend": {"Type": "udp"}}`)
	for i, d := range l.daemons {
		d.readEtcd(l.endpoint())
		if i < 2 {
			l.grant(i)
			d.start()
		} else {
			// Its bridge has an address of that subnet, which it gets only if it
			// had it before.
			d.previous = ipv4Stack.lastSubnets(l.Hosts[i])
		}
	}
	for i, d := range l.daemons[:2] {
		d.waitReady()
		l.reachesInTheEnd(i, 1)
	}
	testkit.Must(t, l.SetPodMTU(1472))
	return l
}

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	                 ├──────── host c ── pod-c, which comes later
//	                 └── etcd: three members, of which one is killed after the
//		                    other, always the leader
func TestNodesJoinAndPodsTalkWhileEtcdLosesItsLeader(t *testing.T) {
	t.Parallel()
	l := awaitThird(t, 3, etcdtest.Options{})
	flows := l.steady(0, 1)
	flows.pass(t, 500)

	first := l.leader(t)
	first.Kill()
	c := l.daemons[2]
	c.start()
	testkit.Eventually(t, "a node joins with two members of three", func() bool { doc := c.tryStatus(); return doc != nil && doc.Waiting == "" && doc.Lease != nil })
	for i := range l.daemons {
		l.seesInTheEnd(i, 3)
	}
	testkit.Must(t, ping(l.pod(0), l.pod(2).Addr, 1472), ping(l.pod(2), l.pod(1).Addr, 1472))
	held := l.entry(2)
	l.persist(t, func(ctx context.Context) error {
		_, err := l.client.Revoke(ctx, held.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil // the answer to an attempt before was lost
		}
		return err
	})
	testkit.Eventually(t, "host c notices that its lease has ended", func() bool { return strings.Contains(c.stderr.String(), `msg="lease lost"`) })
	testkit.Eventually(t, "host c takes its subnet again, on another etcd lease", func() bool {
		now, ok := l.tryEntry(2)
		return ok && now.value == held.value && now.lease != held.lease
	})

	// The member that comes back is now one of two, and needed for everything that follows.
	first.Restart(t)
	second := l.leader(t)
	second.Kill()
	l.persist(t, func(ctx context.Context) error {
		_, err := l.client.Put(ctx, etcdPrefix+"/subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","PublicIPv6":null}`)
		return err
	})
	for i := range l.daemons {
		l.seesInTheEnd(i, 4)
	}
	second.Restart(t)
	flows.pass(t, 500)
	flows.stop(t)
	for i, d := range l.daemons[:2] {
		if log := d.stderr.String(); strings.Contains(log, "lease lost") || strings.Contains(log, "not ready") {
			t.Errorf("host %s was disturbed:\n%s", l.Hosts[i].Letter, log)
		}
	}
	l.checkHistory()
}

// leader waits until the members have one that at least two of them agree on.
func (l *etcdLab) leader(t *testing.T) (leader *etcdtest.Server) {
	t.Helper()
	testkit.Eventually(t, "etcd has a leader", func() bool {
		ids, votes := make(map[uint64]*etcdtest.Server), make(map[uint64]int)
		for _, m := range l.members {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			resp, err := l.client.Status(ctx, l.endpointOf(m))
			cancel()
			if err == nil {
				ids[resp.Header.MemberId] = m
				votes[resp.Leader]++
			}
		}
		for id, n := range votes {
			if n > len(l.members)/2 && ids[id] != nil {
				leader = ids[id]
			}
		}
		return leader != nil
	})
	return leader
}

// persist makes a request until etcd has it: while a leader is elected some fail.
func (l *etcdLab) persist(t *testing.T, request func(context.Context) error) {
	t.Helper()
	err := fmt.Errorf("not tried")
	testkit.Eventually(t, "etcd has a request", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err = request(ctx)
		return err == nil
	}, func() string { return fmt.Sprintf("%v", err) })
}
