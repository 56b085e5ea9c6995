package report

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Schema is the version of the JSON form. It is incremented when a field changes its
// meaning or is removed, but not for a new field.
const Schema = 1

// Baseline is the path that ratios refer to.
const Baseline = "vxlan"

// Base is the path that runs another revision of twill, with which the current one is
// compared.
const Base = "base"

// Report is the result of a session of the laboratory.
type Report struct {
	Schema   int       `json:"schema"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	Command  []string  `json:"command"`
	Revision string    `json:"revision"` // of the program that measured
	Go       string    `json:"go"`       // version that it was built with
	Machine  Machine   `json:"machine"`
	Busy     Busy      `json:"busy"`
	MTU      int       `json:"wire_mtu"`
	Seconds  float64   `json:"seconds"` // of each run, without its warm-up
	Rounds   int       `json:"rounds"`  // number requested
	// Interrupted means that Wire.Rounds may be less than Rounds.
	Interrupted bool    `json:"interrupted,omitempty"`
	Loads       []Named `json:"loads"`
	Wires       []*Wire `json:"wires"`
	// Micro holds the results of Go benchmarks that were added to the report.
	Micro []Micro `json:"micro,omitempty"`
}

// Machine describes where the report was made.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryMB uint64 `json:"memory_mb"`
	Kernel   string `json:"kernel"`
	Arch     string `json:"arch"`
}

func (m Machine) String() string {
	return fmt.Sprintf("%d × %s, %d MB, Linux %s %s", m.CPUs, m.CPU, m.MemoryMB, m.Kernel, m.Arch)
}

// Busy describes other activity on the machine.
type Busy struct {
	UsedPercent   float64 `json:"used_percent_at_start"` // of all CPUs' time, just before the session
	LoadAtStart   float64 `json:"load_average_at_start"` // of one minute
	LoadAtEnd     float64 `json:"load_average_at_end"`   // including the session's own load
	StolenPercent float64 `json:"stolen_percent"`        // CPU time that a hypervisor gave to others
}

// Warning explains why figures may be unreliable; it is empty if nothing suggests that.
func (r *Report) Warning() string {
	var why []string
	if r.Busy.UsedPercent > 5 {
		why = append(why, fmt.Sprintf("%.0f %% of its CPU time was in use before anything was measured", r.Busy.UsedPercent))
	}
	if r.Busy.StolenPercent > 2 {
		why = append(why, fmt.Sprintf("the hypervisor gave %.0f %% of the CPU time to others", r.Busy.StolenPercent))
	}
	if len(why) == 0 {
		return ""
	}
	return "The machine was not idle: " + strings.Join(why, ", and ") + "."
}

// Named is an item with a name and a description.
type Named struct {
	Name  string `json:"name"`
	Title string `json:"title"`
}

// Wire holds the results for one kind of wire.
type Wire struct {
	Named
	Rounds int    `json:"rounds"` // number finished
	Paths  []Path `json:"paths"`
	Runs   []Run  `json:"runs"`
}

// Path is a path that was measured, or the reason why it could not be.
type Path struct {
	Named
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

// ReadJSON reads a file written by WriteJSON.
func ReadJSON(path string) (*Report, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := new(Report)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("read report %s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("read report %s: its schema is %d, this program supports only %d; measure again", path, r.Schema, Schema)
	}
	return r, nil
}

// Failures lists everything that failed, one line each.
func (r *Report) Failures() []string {
	var lines []string
	for _, w := range r.Wires {
		for _, p := range w.Paths {
			if p.Error != "" {
				lines = append(lines, fmt.Sprintf("%s could not be set up on the %s wire: %s", p.Name, w.Name, p.Error))
			}
		}
		for _, run := range w.Runs {
			if run.Error != "" {
				lines = append(lines, fmt.Sprintf("%s on %s, %s wire, round %d: %s", run.Load, run.Path, w.Name, run.Round, run.Error))
			}
		}
	}
	return lines
}
