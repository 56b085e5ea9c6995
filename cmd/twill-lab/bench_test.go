package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/command"
)

// plan is what a command line makes bench do.
func plan(t *testing.T, args string) bench.Options {
	t.Helper()
	var f benchFlags
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse(strings.Fields(args)); err != nil {
		t.Fatal(err)
	}
	f.preset(fs)
	opts, err := f.options(&command.Call{FlagSet: fs})
	if err != nil {
		t.Fatal(err)
	}
	return opts
}

func TestBenchFitsTheTimeThatItMayTake(t *testing.T) {
	for args, most := range map[string]time.Duration{
		"": 25 * time.Minute, "--quick": 3 * time.Minute, "--quick --rounds=4": 3 * time.Minute, "--minutes=40": 40 * time.Minute,
	} {
		opts := plan(t, args)
		if took := opts.Estimate(); took > most || took < most/2 {
			t.Errorf("twill-lab bench %s would take %v with runs of %v, may take %v", args, took, opts.Duration, most)
		}
	}
}

func TestWhatIsGivenCountsMoreThanQuick(t *testing.T) {
	opts := plan(t, "--quick --wire=mtu --wire=super+loss --paths=vxlan --rounds=1 --seconds=0.5")
	if len(opts.Wires) != 2 || opts.Wires[1].Name != "super+loss" || len(opts.Paths) != 1 || opts.Rounds != 1 ||
		opts.Duration != 500*time.Millisecond || len(opts.Loads) != 5 {
		t.Errorf("got %v", &opts)
	}
	if opts := plan(t, ""); opts.Loads != nil || len(opts.Wires) != 4 {
		t.Errorf("got %v", &opts)
	}
}

func TestOtherFlagsAreComparedWithTheSameBuild(t *testing.T) {
	opts := plan(t, "--paths=twill --base-flags=--tun-gro-udp=off")
	if len(opts.Paths) != 2 || opts.Paths[1].Name != report.Base || !slices.Equal(opts.Binaries.BaseFlags, []string{"--tun-gro-udp=off"}) {
		t.Errorf("got %v with %q", &opts, opts.Binaries.BaseFlags)
	}
}

func TestAReportIsShownAgainWithBenchmarks(t *testing.T) {
	dir := t.TempDir()
	from, micro, out := filepath.Join(dir, "old.json"), filepath.Join(dir, "micro.txt"), filepath.Join(dir, "out")
	old := &report.Report{Schema: report.Schema, Revision: "0123456789ab", Rounds: 5}
	if err := old.WriteJSON(from); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(micro, []byte("BenchmarkTX-4 1 2.0 ns/op 0 B/op 0 allocs/op\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	err := program.Run(t.Context(), []string{"bench", "--from", from, "--micro", micro, "--out", out}, &page, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0123456789ab", "allocations, sending"} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("%q is missing in\n%s", want, page.String())
		}
	}
	again, err := report.ReadJSON(filepath.Join(out, "report.json"))
	if err != nil || len(again.Micro) != 1 {
		t.Errorf("written: %+v, %v", again, err)
	}
	err = program.Run(t.Context(), []string{"bench", "--from", from, "--micro", from}, &page, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "no results of Go benchmarks") {
		t.Errorf("a file without benchmarks: %v", err)
	}
}
