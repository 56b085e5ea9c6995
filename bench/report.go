package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/netlab"
)

// Report is what a session of the laboratory found out.
type Report struct {
	Started time.Time       `json:"started"`
	Command []string        `json:"command"`
	Machine Machine         `json:"machine"`
	Wire    netlab.WireKind `json:"wire"`
	WireMTU int             `json:"wire_mtu"`
	Seconds float64         `json:"seconds"` // of each run
	Rounds  int             `json:"rounds"`
	Paths   []PathReport    `json:"paths"`
	Runs    []Run           `json:"runs"`
}

// Machine is where it was.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryMB uint64 `json:"memory_mb"`
	Kernel   string `json:"kernel"`
	Arch     string `json:"arch"`
}

// PathReport is a path that took part, or why it could not.
type PathReport struct {
	Name  string `json:"name"`
	MTU   int    `json:"mtu,omitempty"` // of the pods
	Error string `json:"error,omitempty"`
}

// Run is one load on one path in one round.
type Run struct {
	Round   int     `json:"round"` // from 1
	Path    string  `json:"path"`
	Load    string  `json:"load"`
	Figures Figures `json:"figures,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// WriteJSON writes the report to a file.
func (r *Report) WriteJSON(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// figures returns what a path showed under a load, by round.
func (r *Report) figures(path, load, key string) map[int]float64 {
	values := make(map[int]float64)
	for _, run := range r.Runs {
		if run.Path == path && run.Load == load {
			if v, ok := run.Figures[key]; ok {
				values[run.Round] = v
			}
		}
	}
	return values
}

// Median returns the median over all rounds; false if there is no figure.
func (r *Report) Median(path, load, key string) (float64, bool) {
	var values []float64
	for _, v := range r.figures(path, load, key) {
		values = append(values, v)
	}
	return median(values)
}

// Ratio returns the median of a path's ratios to another path, taken round by
// round, so that what slows down the machine for a while cancels out.
func (r *Report) Ratio(path, to, load, key string) (float64, bool) {
	base := r.figures(to, load, key)
	var ratios []float64
	for round, v := range r.figures(path, load, key) {
		if b := base[round]; b != 0 {
			ratios = append(ratios, v/b)
		}
	}
	return median(ratios)
}

func median(values []float64) (float64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	slices.Sort(values)
	mid := len(values) / 2
	if len(values)%2 == 1 {
		return values[mid], true
	}
	return (values[mid-1] + values[mid]) / 2, true
}

// Failed tells of everything that did not work; nil if all did.
func (r *Report) Failed() error {
	failed := 0
	for _, p := range r.Paths {
		if p.Error != "" {
			failed++
		}
	}
	for _, run := range r.Runs {
		if run.Error != "" {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d paths and runs failed", failed, len(r.Paths)+len(r.Runs))
	}
	return nil
}

// thisMachine describes the machine as far as /proc tells.
func thisMachine() Machine {
	m := Machine{CPU: "unknown CPU", CPUs: runtime.NumCPU(), Arch: runtime.GOARCH}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			// "model name" on x86, "Model" on many ARM boards.
			if key, value, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(strings.ToLower(key), "model") &&
				!strings.Contains(key, "family") && len(strings.TrimSpace(value)) > 4 {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.MemoryMB = uint64(info.Totalram) * uint64(info.Unit) >> 20
	}
	return m
}

func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, %d MB, Linux %s %s", m.CPUs, m.CPU, m.MemoryMB, m.Kernel, m.Arch)
}
