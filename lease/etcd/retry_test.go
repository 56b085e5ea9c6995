//go:build !noetcd

package etcd

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestAnOutageIsLoggedAtOnceAndThenAtABoundedRate(t *testing.T) {
	var o outage
	start := time.Now()
	logged := 0
	for at := time.Duration(0); at < 10*time.Minute; at += 100 * time.Millisecond {
		if o.note(start.Add(at)) {
			logged++
		}
		if at == 0 && logged != 1 {
			t.Error("the first failure is not logged")
		}
		if at%(10*time.Second) == 0 {
			o.end() // an etcd that comes and goes
		}
	}
	if most := int(10*time.Minute/logInterval) + 1; logged > most || logged < most/2 {
		t.Errorf("logged %d times in 10 minutes, want no more than %d", logged, most)
	}
}

func TestTheEndOfAnOutageIsLoggedIfItsBeginningWas(t *testing.T) {
	var o outage
	if _, logged := o.end(); logged {
		t.Error("the end of no outage is logged")
	}
	o.note(time.Now())
	if _, logged := o.end(); !logged {
		t.Error("the end of an outage that was logged is not")
	}
	o.note(time.Now()) // within logInterval: not logged
	if _, logged := o.end(); logged {
		t.Error("the end of an outage is logged whose beginning was not")
	}
}

func TestPausesGrowToTheirBoundAndDiffer(t *testing.T) {
	b := backoff{longest: 400 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // do not wait
	var bounds []time.Duration
	for range 6 {
		if err := b.wait(ctx); err == nil {
			t.Fatal("a pause outlived its context")
		}
		bounds = append(bounds, b.next/time.Millisecond)
	}
	for i, want := range []time.Duration{50, 100, 200, 400, 400, 400} {
		if bounds[i] != want {
			t.Fatalf("bounds %d ms, want 50, 100, 200 and then 400", bounds)
		}
	}
}

// A late watch gets what it has missed in parts, each under etcd's current
// revision; what counts is how far the events go.
func TestAWatchHasReachedWhatItsEventsSay(t *testing.T) {
	header := &etcdserverpb.ResponseHeader{Revision: 900}
	for _, tt := range []struct {
		name string
		resp clientv3.WatchResponse
		want int64
	}{
		{"events", clientv3.WatchResponse{Header: header, Events: []*clientv3.Event{
			{Kv: &mvccpb.KeyValue{ModRevision: 30}}, {Kv: &mvccpb.KeyValue{ModRevision: 40}}}}, 40},
		{"progress", clientv3.WatchResponse{Header: header}, 900},
		{"created", clientv3.WatchResponse{Header: header, Created: true}, 20},
	} {
		if got := reached(20, tt.resp); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
}
