package report

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// sample is three rounds of which the second met a machine at half its speed,
// with a path that was not to be had and a run that failed.
func sample() *Report {
	w := &Wire{
		Named: Named{"super", "super-packets pass unsplit"}, Rounds: 3,
		Paths: []Path{
			{Named: Named{"twill", "twill"}, MTU: 1472}, {Named: Named{"vxlan", "kernel VXLAN"}, MTU: 1450},
			{Named: Named{"flannel-udp", "stock flannel udp"}, Error: "not there\n(build it with: make peers)"},
		},
	}
	for i, speed := range []float64{1, 0.5, 1.1} {
		for path, gbit := range map[string]float64{"twill": 8 * speed, "vxlan": 10 * speed} {
			w.Runs = append(w.Runs, Run{Round: i + 1, Path: path, Load: "tcp1", Figures: Figures{
				Throughput.Key: gbit, CPUPerGB.Key: 1.234 / speed, Retransmits.Key: 1234, PeakRSS.Key: 20 * speed,
			}})
		}
	}
	w.Runs = append(w.Runs, Run{Round: 1, Path: "twill", Load: "rr", Figures: Figures{HalfRTT50.Key: 41.4, HalfRTT99.Key: 99}},
		Run{Round: 1, Path: "vxlan", Load: "rr", Error: "no answer arrived"})
	started := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return &Report{
		Schema: Schema, Started: started, Ended: started.Add(90 * time.Second),
		Command: []string{"twill", "bench", "--rounds=3"}, Revision: "v0.1.0", Go: "go1.26.0",
		Machine: Machine{CPU: "Example 9000", CPUs: 4, MemoryMB: 8192, Kernel: "6.1.0", Arch: "arm64"},
		Busy:    Busy{UsedPercent: 42, LoadAtStart: 2.5, LoadAtEnd: 3.25}, MTU: 1500, Seconds: 1.5, Rounds: 3,
		Loads: []Named{{"tcp1", "TCP, 1 stream"}, {"rr", "requests, 64 B"}},
		Wires: []*Wire{w},
	}
}

func TestComparisonShowsTheRatioToTheBaseAndItsSpread(t *testing.T) {
	r := sample()
	w := r.Wires[0]
	for i, speed := range []float64{7.2, 4.4, 8} {
		w.Runs = append(w.Runs, Run{Round: i + 1, Path: Base, Load: "tcp1", Figures: Figures{Throughput.Key: speed}})
	}
	var b strings.Builder
	if err := r.WriteComparison(&b); err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "comparison.golden.md", b.String())
}

func TestRatioIsTakenRoundByRound(t *testing.T) {
	w := sample().Wires[0]
	if s, ok := w.Figure("twill", "tcp1", Throughput); !ok || s != (Stat{8, 4, 8.8, 3}) {
		t.Errorf("figure %+v, %t; want 8, from 4 to 8.8", s, ok)
	}
	if s, ok := w.Ratio("twill", "vxlan", "tcp1", Throughput); !ok || s != (Stat{0.8, 0.8, 0.8, 3}) {
		t.Errorf("ratio %+v, %t; want 0.8 in every round", s, ok)
	}
	if _, ok := w.Ratio("twill", "vxlan", "rr", HalfRTT50); ok {
		t.Error("a ratio to a run that failed")
	}
	if _, ok := w.Figure("twill", "tcp4", Throughput); ok {
		t.Error("a figure of no runs")
	}
	if s, _ := stat([]float64{4, 1, 3, 2}); s.Median != 2.5 {
		t.Errorf("median of an even number is %g", s.Median)
	}
}

func TestMarkdownShowsFiguresCircumstancesAndFailures(t *testing.T) {
	testkit.Golden(t, "report.golden.md", sample().Markdown("results"))
}

func TestSummaryShowsFiguresCircumstancesAndFailures(t *testing.T) {
	var b strings.Builder
	if err := sample().WriteSummary(&b); err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "summary.golden", b.String())
}

func TestInterruptedReportSaysHowManyRoundsItHas(t *testing.T) {
	r := sample()
	r.Rounds, r.Interrupted = 5, true
	w := r.Wires[0]
	w.Rounds = 2
	w.KeepFinishedRounds()
	if s, _ := w.Figure("twill", "tcp1", Throughput); s.Rounds != 2 {
		t.Errorf("%d rounds are left of two that were finished and one that was not", s.Rounds)
	}
	if text := r.Markdown(""); !strings.Contains(text, "Finished rounds: 2 of 5 on the super wire.") {
		t.Error(text)
	}
	w.Rounds = 0
	if w.KeepFinishedRounds(); len(w.Runs) == 0 {
		t.Error("nothing is left of a first round that was cut short")
	}
}

func TestBusyMachineIsNamed(t *testing.T) {
	for _, tc := range []struct {
		busy Busy
		want string
	}{
		{Busy{UsedPercent: 5, LoadAtStart: 3, LoadAtEnd: 9, StolenPercent: 2}, ""},
		{Busy{UsedPercent: 6}, "6 % of its CPU time was in use"},
		{Busy{StolenPercent: 7}, "gave 7 % of the CPU time to others"},
	} {
		r := sample()
		r.Busy = tc.busy
		if got := r.Warning(); tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%+v: %q, want %q", tc.busy, got, tc.want)
		}
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

func TestMarksAreComputed(t *testing.T) {
	r := sample()
	m := mark{"TCP", "super", "twill", Baseline, "tcp1", Throughput, 0.8, false}
	for _, tc := range []struct {
		change func(*mark)
		want   string
	}{
		{func(*mark) {}, reached},
		{func(m *mark) { m.want = 0.81 }, notReached},
		{func(m *mark) { m.atMost = true }, reached},
		{func(m *mark) { m.want, m.atMost = 0.79, true }, notReached},
		{func(m *mark) { m.wire = "mtu" }, notMeasured},
		{func(m *mark) { m.to = "wireguard-go" }, notMeasured},
		{func(m *mark) { m.load = "tcp4" }, notMeasured},
		{func(m *mark) { m.to, m.load, m.m, m.want, m.atMost = "", "", PeakRSS, 20, true }, reached},
		{func(m *mark) { m.to, m.load, m.m, m.want, m.atMost = "", "", PeakRSS, 19.9, true }, notReached},
	} {
		m := m
		tc.change(&m)
		if row := r.markRow(m); row[len(row)-1] != tc.want {
			t.Errorf("%+v: %q, want %q", m, row, tc.want)
		}
	}
}

func TestGoBenchmarksAreReadAndJudged(t *testing.T) {
	const printed = `goos: linux
BenchmarkResolver/table_of_1000-4   	 1000	        19.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkResolver/table_of_1000-4   	 1000	        21.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkResolver/table_of_1000-4   	 1000	        17.0 ns/op	       0 B/op	       0 allocs/op
BenchmarkTX-4	 500	 2000 ns/op	 32000.5 MB/s	       0 B/op	       0 allocs/op
BenchmarkRX/merge=true 	 500	 2000 ns/op	       0 B/op	       0 allocs/op
BenchmarkRX/merge=false 	 500	 2000 ns/op	       8 B/op	       1 allocs/op
PASS
ok  	example	1.2s
`
	results, err := ParseMicro(strings.NewReader(printed))
	if err != nil {
		t.Fatal(err)
	}
	if len(results) != 4 || results[0].Name != "Resolver/table_of_1000" || results[0].Runs != 3 || results[0].Values["ns/op"] != 19 {
		t.Errorf("got %+v", results)
	}
	if v := results[1].Values["MB/s"]; v != 32000.5 {
		t.Errorf("MB/s is %g", v)
	}
	r := sample()
	r.Micro = results
	text := r.Markdown("")
	for _, want := range []string{"| 19 | reached", "allocations, sending", "| 1 | **not reached**"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if _, err := ParseMicro(strings.NewReader("BenchmarkTX-4 10 fast ns/op")); err == nil {
		t.Error("a figure that is none was read")
	}
}

func TestJSONIsReadBackAndItsSchemaChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results", "report.json")
	r := sample()
	if err := r.WriteJSON(path); err != nil {
		t.Fatal(err)
	}
	back, err := ReadJSON(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := back.Markdown("."), r.Markdown("."); got != want {
		t.Errorf("read back:\n%s\nwant\n%s", got, want)
	}
	r.Schema++
	if err := r.WriteJSON(path); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadJSON(path); err == nil || !strings.Contains(err.Error(), "schema is 2") {
		t.Errorf("a later schema: %v", err)
	}
}

func TestPageKeepsItsProse(t *testing.T) {
	dir := t.TempDir()
	page := filepath.Join(dir, "docs", "page.md")
	if err := os.Mkdir(filepath.Dir(page), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + pageBegin + "\nold\n" + pageEnd + "\nafter\n")
	for range 2 {
		if err := sample().UpdatePage(page, filepath.Join(dir, "bench", "results")); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	s := string(text)
	if !strings.HasPrefix(s, "before\n"+pageBegin) || !strings.HasSuffix(s, pageEnd+"\nafter\n") || strings.Contains(s, "old") {
		t.Errorf("got\n%s", s)
	}
	if !strings.Contains(s, "(../bench/results/tcp.svg)") || strings.Count(s, "Example 9000") != 1 {
		t.Errorf("got\n%s", s)
	}
	t.Chdir(dir) // one of the two relative, one not
	if err := sample().UpdatePage(filepath.Join("docs", "page.md"), filepath.Join(dir, "bench", "results")); err != nil {
		t.Error(err)
	}
	write("no markers")
	if err := sample().UpdatePage(page, dir); err == nil || !strings.Contains(err.Error(), pageBegin) {
		t.Errorf("a page without markers: %v", err)
	}
}

func TestPageOfTheDocsCanBeUpdated(t *testing.T) {
	text, err := os.ReadFile("../../docs/performance.md")
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(page, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := sample().UpdatePage(page, t.TempDir()); err != nil {
		t.Error(err)
	}
}

// full is a report with figures for everything that plots show, of the size
// that real ones have.
func full() *Report {
	r := sample()
	r.Wires = nil
	paths := []Named{
		{"twill", "twill"}, {"twill-1", "twill, one shard"}, {"twill-plain", "twill, plain engine"}, {"vxlan", "kernel VXLAN"},
		{"host-gw", "host-gw"}, {"wire", "bare wire"}, {"flannel-udp", "stock flannel udp"},
		{"wireguard-go", "wireguard-go (encrypts)"}, {"nebula", "nebula (encrypts)"},
	}
	speed := []float64{1.1, 0.9, 0.15, 1, 1.4, 5, 0.06, 0.3, 0.09}
	for _, wire := range []string{"super", "mtu", "super+loss", "mtu+loss"} {
		w := &Wire{Named: Named{wire, "as " + wire + " is"}, Rounds: 3}
		for i, p := range paths {
			w.Paths = append(w.Paths, Path{Named: p})
			for round := 1; round <= 3; round++ {
				v := speed[i] * (1 + 0.1*math.Sin(float64(round*i)))
				for n, load := range []string{"tcp1", "tcp4", "tcp16", "udp64", "udp512", "udpmtu", "rr", "rr-load"} {
					w.Runs = append(w.Runs, Run{Round: round, Path: p.Name, Load: load, Figures: Figures{
						Throughput.Key: 7 * v * float64(1+n%3), PacketRate.Key: 300 * v, CPUPerGB.Key: 2 / v,
						HalfRTT50.Key: 60 / v * float64(n), HalfRTT99.Key: 120 / v * float64(n), HalfRTT999.Key: 400 / v * float64(n),
					}})
				}
			}
		}
		r.Wires = append(r.Wires, w)
	}
	return r
}

func TestPlotsAreWrittenAndAlwaysTheSame(t *testing.T) {
	dir, again := t.TempDir(), t.TempDir()
	for _, d := range []string{dir, again} {
		if err := full().WriteFiles(d); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ratio", "tcp", "udp", "latency", "cpu", "loss"} {
		for _, suffix := range []string{".svg", ".png"} {
			a, err := os.ReadFile(filepath.Join(dir, name+suffix))
			if err != nil {
				t.Error(err)
				continue
			}
			b, err := os.ReadFile(filepath.Join(again, name+suffix))
			if err != nil || string(a) != string(b) {
				t.Errorf("%s: two plots of the same figures differ (%v)", name+suffix, err)
			}
			if suffix == ".svg" && !strings.Contains(string(a), "stock flannel udp") {
				t.Errorf("%s: the legend is missing", name+suffix)
			}
		}
	}
}

func TestOnlyWhatWasMeasuredIsPlotted(t *testing.T) {
	var names []string
	for _, c := range sample().charts() {
		names = append(names, c.name)
		for _, p := range c.panels {
			if len(p.groups) == 0 || len(p.series) == 0 {
				t.Errorf("%s has an empty panel %q", c.name, p.title)
			}
		}
	}
	if got := fmt.Sprint(names); got != "[ratio tcp latency cpu]" {
		t.Errorf("plots %s", got)
	}
}
