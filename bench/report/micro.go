package report

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Micro is the result of a Go benchmark.
type Micro struct {
	Name   string             `json:"name"` // without "Benchmark" and the number of CPUs
	Runs   int                `json:"runs"`
	Values map[string]float64 `json:"values"` // medians by unit: ns/op, B/op, allocs/op, MB/s
}

// cpuSuffix is what go test adds to a benchmark's name unless GOMAXPROCS is
// one.
var cpuSuffix = regexp.MustCompile(`-\d+$`)

// ParseMicro reads the output of go test -bench. Lines that are not results are
// skipped.
func ParseMicro(in io.Reader) ([]Micro, error) {
	var names []string
	samples := make(map[string]map[string][]float64) // by name and unit
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := cpuSuffix.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), "")
		if samples[name] == nil {
			samples[name] = make(map[string][]float64)
			names = append(names, name)
		}
		for i := 2; i+1 < len(f); i += 2 { // after the name and the number of iterations
			v, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, fmt.Errorf("read benchmark results: %q: %w", lines.Text(), err)
			}
			samples[name][f[i+1]] = append(samples[name][f[i+1]], v)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read benchmark results: %w", err)
	}
	var results []Micro
	for _, name := range names {
		m := Micro{Name: name, Values: make(map[string]float64)}
		for unit, values := range samples[name] {
			s, _ := stat(values)
			m.Values[unit], m.Runs = s.Median, s.Rounds
		}
		results = append(results, m)
	}
	return results, nil
}

// worst returns the largest value among the benchmark with the given name and its
// sub-benchmarks.
func worst(results []Micro, name, unit string) (largest float64, ok bool) {
	for _, m := range results {
		v, there := m.Values[unit]
		if !there || m.Name != name && !strings.HasPrefix(m.Name, name+"/") {
			continue
		}
		largest, ok = max(largest, v), true
	}
	return largest, ok
}

// writeMicro writes the results of Go benchmarks as a table.
func writeMicro(b *strings.Builder, results []Micro) {
	units := []string{"ns/op", "MB/s", "B/op", "allocs/op"}
	rows := [][]string{append([]string{"benchmark"}, units...)}
	for _, m := range results {
		row := []string{m.Name}
		for _, unit := range units {
			cell := noFigure
			if v, ok := m.Values[unit]; ok {
				cell = threeDigits(v)
			}
			row = append(row, cell)
		}
		rows = append(rows, row)
	}
	writeTable(b, 1, rows)
}
