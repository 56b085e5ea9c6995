package etcdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func TestACutRelayPassesNothingAndAHealedOneGoesOn(t *testing.T) {
	s := Start(t, Options{})
	r := NewRelay(t, s.Endpoint)
	far, err := clientv3.New(clientv3.Config{Endpoints: []string{r.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := far.Put(ctx, "k", "1"); err != nil {
		t.Fatal(err)
	}
	r.Cut()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := far.Put(short, "k", "2"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a put through a cut relay: %v", err)
	}
	if resp, err := s.Client(t).Get(ctx, "k"); err != nil || string(resp.Kvs[0].Value) != "1" {
		t.Errorf("etcd has %v, %v", resp, err)
	}
	r.Heal()
	if _, err := far.Put(ctx, "k", "3"); err != nil {
		t.Errorf("a put through a healed relay: %v", err)
	}
}

func TestAKilledServerKeepsItsDataAndAWipedOneDoesNot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s := Start(t, Options{})
	c := s.Client(t)
	count := func() int64 {
		t.Helper()
		resp, err := c.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		return resp.Count
	}
	if _, err := c.Put(ctx, "k", "1"); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	s.Restart(t)
	if n := count(); n != 1 {
		t.Errorf("%d keys after a crash, want 1", n)
	}
	s.Kill()
	s.Wipe(t)
	s.Restart(t)
	if n := count(); n != 0 {
		t.Errorf("%d keys in an emptied server, want 0", n)
	}
}
