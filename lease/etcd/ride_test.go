package etcd

import (
	"context"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTheLogIsToldAtOnceAndThenAtABoundedRate(t *testing.T) {
	var s silence
	start := time.Now()
	told := 0
	for at := time.Duration(0); at < 10*time.Minute; at += 100 * time.Millisecond {
		if s.tell(start.Add(at)) {
			told++
		}
		if at == 0 && told != 1 {
			t.Error("the first failure is not told")
		}
		if at%(10*time.Second) == 0 {
			s.end() // an etcd that comes and goes
		}
	}
	if most := int(10*time.Minute/tellEvery) + 1; told > most || told < most/2 {
		t.Errorf("told %d times in 10 minutes, want no more than %d", told, most)
	}
}

func TestTheEndOfASilenceIsToldIfItsBeginningWas(t *testing.T) {
	var s silence
	if _, told := s.end(); told {
		t.Error("the end of no silence is told")
	}
	s.tell(time.Now())
	if _, told := s.end(); !told {
		t.Error("the end of a silence that was told is not")
	}
	s.tell(time.Now()) // within tellEvery: not told
	if _, told := s.end(); told {
		t.Error("the end of a silence is told that nobody knows of")
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
