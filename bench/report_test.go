package bench

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/netlab"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sampleReport is three rounds of which the second met a machine at half its
// speed, with a path that was not to be had and a run that failed.
func sampleReport() *Report {
	r := &Report{
		Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: []string{"twill", "bench"},
		Machine: Machine{CPU: "Example 9000", CPUs: 4, MemoryMB: 8192, Kernel: "6.1.0", Arch: "arm64"},
		Wire:    netlab.Super, WireMTU: 1500, Seconds: 1.5, Rounds: 3,
		Paths: []PathReport{{Name: "twill", MTU: 1472}, {Name: "vxlan", MTU: 1450}, {Name: "flannel-udp", Error: "not built"}},
	}
	for i, speed := range []float64{1, 0.5, 1.1} {
		for path, gbit := range map[string]float64{"twill": 8 * speed, "vxlan": 10 * speed} {
			r.Runs = append(r.Runs, Run{Round: i + 1, Path: path, Load: "tcp1", Figures: Figures{
				throughput.Key: gbit, cpuPerGB.Key: 1.234 / speed, retransmits.Key: 1234,
			}})
		}
	}
	r.Runs = append(r.Runs, Run{Round: 1, Path: "twill", Load: "rr", Figures: Figures{halfRTT50.Key: 41.4}},
		Run{Round: 1, Path: "vxlan", Load: "rr", Error: "no answer arrived"})
	return r
}

func TestRatioIsTakenRoundByRound(t *testing.T) {
	r := sampleReport()
	if v, ok := r.Median("twill", "tcp1", throughput.Key); !ok || v != 8 {
		t.Errorf("median %g, %t; want 8", v, ok)
	}
	if v, ok := r.Ratio("twill", "vxlan", "tcp1", throughput.Key); !ok || v != 0.8 {
		t.Errorf("ratio %g, %t; want 0.8 in every round", v, ok)
	}
	if _, ok := r.Ratio("twill", "vxlan", "rr", halfRTT50.Key); ok {
		t.Error("a ratio to a run that failed")
	}
	if _, ok := r.Median("twill", "tcp4", throughput.Key); ok {
		t.Error("a median of no runs")
	}
	if v, _ := median([]float64{4, 1, 3, 2}); v != 2.5 {
		t.Errorf("median of an even number is %g", v)
	}
}

func TestTableShowsFiguresConditionsAndFailures(t *testing.T) {
	var b strings.Builder
	if err := sampleReport().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "table.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestJSONHoldsEveryRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "run.json")
	if err := sampleReport().WriteJSON(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Runs) != 8 {
		t.Errorf("%d runs, want 8", len(back.Runs))
	}
	if v, ok := back.Ratio("twill", "vxlan", "tcp1", throughput.Key); !ok || v != 0.8 {
		t.Errorf("ratio %g, %t after reading it back", v, ok)
	}
	if err := back.Failed(); err == nil || err.Error() != "2 of 11 paths and runs failed" {
		t.Errorf("Failed says %v", err)
	}
}

func TestThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 3: "3", 12345: "12345", 12345.6: "12346", 99.94: "99.9", 9.996: "10.00", 0.1234: "0.12", 0.0012: "0.001",
	} {
		if got := threeDigits(v); got != want {
			t.Errorf("%g: %s, want %s", v, got, want)
		}
	}
}

func TestNamesOfPathsAndLoadsAreCheckedAndUnique(t *testing.T) {
	if paths, err := ParsePaths(AllPaths()); err != nil || len(paths) != len(Paths) {
		t.Errorf("all paths: %d of them, %v", len(paths), err)
	}
	if loads, err := ParseLoads("rr,tcp1"); err != nil || loads[0].Name != "rr" || loads[1].Name != "tcp1" {
		t.Errorf("rr,tcp1: %v, %v", loads, err)
	}
	_, err := ParsePaths("twill,vxlna")
	if err == nil || !strings.Contains(err.Error(), `unknown path "vxlna"`) || !strings.Contains(err.Error(), "host-gw") {
		t.Errorf("a misspelt path: %v", err)
	}
}
