package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	├──────── host c ── pod-c, which comes when etcd is full
//	└── etcd, with room for 8 MB
func TestNodeThatJoinsWaitsWhileEtcdIsFullAndTheOthersTalk(t *testing.T) {
	t.Parallel()
	l := awaitThird(t, 1, etcdtest.Options{Flags: []string{"--quota-backend-bytes=8388608"}})
	flows := l.steady(0, 1)
	l.fill(t)

	c := l.daemons[2]
	c.start()
	testkit.Eventually(t, "host c says what it waits for, and what to do", func() bool {
		doc := c.tryStatus()
		return doc != nil && doc.Waiting == "a lease" && strings.Contains(c.stderr.String(), "etcd's database is full: compact and defragment it")
	}, func() string { return fmt.Sprintf("%+v", c.tryStatus()) })
	flows.pass(t, 2000)
	l.makeRoom(t)
	testkit.Eventually(t, "host c joins an etcd that has room again", func() bool { return c.status().Waiting == "" })
	for i := range l.daemons {
		l.seesInTheEnd(i, 3)
	}
	testkit.Must(t, ping(l.pod(0), l.pod(2).Addr, 1472))
	flows.stop(t)
	for i, d := range l.daemons[:2] {
		if log := d.stderr.String(); strings.Contains(log, "not ready") || strings.Contains(log, "lease lost") {
			t.Errorf("host %s was disturbed:\n%s", l.Hosts[i].Letter, log)
		}
	}
	if got := len(l.entries()); got != 3 {
		t.Errorf("%d leases, want 3", got)
	}
}

// fill writes to etcd until it accepts no more.
func (l *etcdLab) fill(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	var err error
	for i := 0; err == nil; i++ {
		_, err = l.client.Put(ctx, fmt.Sprintf("/filler/%d", i), strings.Repeat("x", 1<<20))
	}
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		t.Fatal(err)
	}
}

// makeRoom does what the log says, and undoes fill.
func (l *etcdLab) makeRoom(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	resp, err := l.client.Delete(ctx, "/filler/", clientv3.WithPrefix())
	testkit.Must(t, err)
	_, err = l.client.Compact(ctx, resp.Header.Revision, clientv3.WithCompactPhysical())
	testkit.Must(t, err)
	_, err = l.client.Defragment(ctx, l.endpoint())
	testkit.Must(t, err)
	_, err = l.client.AlarmDisarm(ctx, &clientv3.AlarmMember{})
	testkit.Must(t, err)
}
