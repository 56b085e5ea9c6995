package main

import (
	"strings"
	"testing"
)

func TestReportShowsFailuresAndSkipsOnly(t *testing.T) {
	const in = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"=== RUN   TestGood\n"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"chatter\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"run","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"=== RUN   TestBad\n"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    x_test.go:3: got 1, want 2\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestOff","Output":"    x_test.go:9: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestOff"}
{"Action":"output","Package":"p","Test":"TestCut","Output":"panic: oh\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.6s\n"}
{"Action":"fail","Package":"p"}
not JSON
{"ImportPath":"q","Action":"build-output","Output":"q.go:1: broken\n"}
{"Action":"output","Package":"r","Output":"PASS\n"}
{"Action":"output","Package":"r","Output":"ok  \tr\t0.1s\n"}
{"Action":"pass","Package":"r"}
`
	const want = `    x_test.go:3: got 1, want 2
skipped: p TestOff
    x_test.go:9: needs root
FAIL	p	0.6s
panic: oh
not JSON
q.go:1: broken
ok  	r	0.1s
`
	var out strings.Builder
	r := newReport(&out)
	if err := r.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != want {
		t.Errorf("printed:\n%s\nwant:\n%s", got, want)
	}
	if r.passed != 1 || r.failed != 2 || r.skipped != 1 {
		t.Errorf("passed %d, failed %d, skipped %d; want 1, 2 (one cut off), 1", r.passed, r.failed, r.skipped)
	}
}

func TestEachNamesTopLevelTestsWithTheTimeOfTheirSubtests(t *testing.T) {
	const in = `{"Time":"2026-01-01T00:00:00Z","Action":"run","Package":"p","Test":"TestGood"}
{"Time":"2026-01-01T00:00:00Z","Action":"pause","Package":"p","Test":"TestGood"}
{"Time":"2026-01-01T00:01:00Z","Action":"cont","Package":"p","Test":"TestGood"}
{"Time":"2026-01-01T00:01:01Z","Action":"run","Package":"p","Test":"TestGood/sub"}
{"Time":"2026-01-01T00:01:02.5Z","Action":"pass","Package":"p","Test":"TestGood/sub","Elapsed":1.5}
{"Time":"2026-01-01T00:01:02.5Z","Action":"pass","Package":"p","Test":"TestGood","Elapsed":0}
`
	var out strings.Builder
	r := newReport(&out)
	r.each = true
	if err := r.read(strings.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "  2.50s TestGood\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}
