package tun

import (
	"errors"
	"strings"
	"testing"
)

func TestVersionsAreOrdered(t *testing.T) {
	for _, tt := range []struct {
		a, b   Version
		before bool
	}{
		{Version{5, 10}, Version{5, 10}, false},
		{Version{5, 9}, Version{5, 10}, true},
		{Version{5, 10}, Version{5, 9}, false},
		{Version{5, 10}, Version{6, 0}, true},
		{Version{6, 0}, Version{5, 10}, false},
		{Version{}, Version{2, 6}, true},
	} {
		if got := tt.a.Before(tt.b); got != tt.before {
			t.Errorf("%s before %s: %t", tt.a, tt.b, got)
		}
	}
	if v := Kernel(); v.Before(Version{3, 2}) { // the oldest that Go runs on
		t.Errorf("this kernel is Linux %s", v)
	}
}

func TestVerifyFindsVersionAndProbeThatContradictEachOther(t *testing.T) {
	refusal := errors.New("unknown option")
	always, never := Version{2, 6}, Version{99, 0}
	for _, tt := range []struct {
		since Version
		probe error
		want  string // part of the error; empty: none
	}{
		{always, nil, ""},
		{never, refusal, ""},
		{always, refusal, "SO_X: supported since Linux 2.6"},
		{never, nil, "SO_X: supported only since Linux 99.0"},
	} {
		err := Feature{"SO_X", tt.since, func() error { return tt.probe }}.Verify()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("since %s, probe says %v: %v, want %q", tt.since, tt.probe, err, tt.want)
		}
	}
}
