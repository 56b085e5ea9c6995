package etcdtest

import (
	"context"
	"errors"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestACutRelayPassesNothingAndAHealedOneGoesOn(t *testing.T) {
	s := Start(t, Options{})
	r := NewRelay(t, s.Endpoint)
	far, err := clientv3.New(clientv3.Config{Endpoints: []string{r.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
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

// A client that asks through the relay, and one that is not behind it.
func relayed(t *testing.T) (r *Relay, far, near *clientv3.Client) {
	t.Helper()
	s := Start(t, Options{})
	r = NewRelay(t, s.Endpoint)
	far, err := clientv3.New(clientv3.Config{Endpoints: []string{r.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return r, far, s.Client(t)
}

// value waits until the key k has a value other than old.
func value(ctx context.Context, t *testing.T, c *clientv3.Client, old string) string {
	t.Helper()
	for {
		resp, err := c.Get(ctx, "k")
		if err != nil {
			t.Fatal(err)
		}
		if string(resp.Kvs[0].Value) != old {
			return string(resp.Kvs[0].Value)
		}
	}
}

func TestARelayStopsTheChosenRequest(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	r, far, near := relayed(t)
	if _, err := far.Put(ctx, "k", "old-one"); err != nil {
		t.Fatal(err)
	}
	// What was sent before does not count.
	reached := r.CutBefore("old-one")
	select {
	case <-reached:
		t.Fatal("the relay has found what passed before the call")
	default:
	}
	reached = r.CutBefore("new-one")
	put := make(chan error, 1)
	go func() {
		_, err := far.Put(ctx, "k", "new-one")
		put <- err
	}()
	<-reached
	if got := value(ctx, t, near, ""); got != "old-one" {
		t.Errorf("etcd has %q before the request is delivered", got)
	}
	r.Deliver()
	if got := value(ctx, t, near, "old-one"); got != "new-one" {
		t.Errorf("etcd has %q", got)
	}
	select {
	case err := <-put:
		t.Errorf("the client has an answer while the relay is cut: %v", err)
	default:
	}
	r.Heal()
	if err := <-put; err != nil {
		t.Error(err)
	}
}

func TestARelayStopsTheChosenAnswer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
	defer cancel()
	r, far, near := relayed(t)
	if _, err := far.Put(ctx, "k", "old-one"); err != nil {
		t.Fatal(err)
	}
	reached := r.CutAfter("new-one")
	short, cancel := context.WithCancel(ctx)
	put := make(chan error, 1)
	go func() {
		_, err := far.Put(short, "k", "new-one")
		put <- err
	}()
	<-reached
	if got := value(ctx, t, near, "old-one"); got != "new-one" {
		t.Errorf("etcd has %q", got)
	}
	cancel()
	if err := <-put; !errors.Is(err, context.Canceled) {
		t.Errorf("the client has an answer: %v", err)
	}
	r.Heal()
	if _, err := far.Get(ctx, "k"); err != nil {
		t.Errorf("a healed relay: %v", err)
	}
}

func TestAKilledServerKeepsItsDataAndAWipedOneDoesNot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), testkit.Patience)
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
