package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/twillnet/twill/bench/report"
)

// meter measures what a load costs, beginning with startMeter.
type meter struct {
	started time.Time
	machine time.Duration
	daemons time.Duration
	pids    []int
}

// usage is what a meter has measured.
type usage struct {
	elapsed time.Duration
	machine time.Duration // CPU time of the whole machine
	daemons time.Duration // CPU time of the daemons
	peakRSS int64         // of the largest daemon, in bytes; 0 if there is none
}

// startMeter starts a meter. It also resets the daemons' peak resident set sizes in the
// kernel. If that is not supported (CONFIG_PROC_PAGE_MONITOR), the peaks count from the
// daemons' start.
func startMeter(pids []int) (*meter, error) {
	m := &meter{pids: pids}
	for _, pid := range pids {
		// 5: reset the peak, see proc_pid_clear_refs(5).
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
	u, err := m.read()
	m.started, m.machine, m.daemons = time.Now(), u.machine, u.daemons
	return m, err
}

func (m *meter) read() (u usage, err error) {
	t, err := machineCPU()
	if err != nil {
		return u, err
	}
	u.machine = t.used
	for _, pid := range m.pids {
		d, err := processCPU(pid)
		if err != nil {
			return u, err
		}
		u.daemons += d
		rss, err := peakRSS(pid)
		if err != nil {
			return u, err
		}
		u.peakRSS = max(u.peakRSS, rss)
	}
	return u, nil
}

// stop returns the usage since the start.
func (m *meter) stop() (usage, error) {
	elapsed := time.Since(m.started)
	u, err := m.read()
	return usage{elapsed, u.machine - m.machine, u.daemons - m.daemons, u.peakRSS}, err
}

// memory adds the daemons' memory to figures if there are daemons.
func (u usage) memory(f report.Figures) report.Figures {
	if u.peakRSS > 0 {
		f[report.PeakRSS.Key] = float64(u.peakRSS) / 1e6
	}
	return f
}

// peakRSS returns the peak resident set size of a process, in bytes.
func peakRSS(pid int) (int64, error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	status, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	rss, err := parsePeakRSS(status)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return rss, nil
}

// parsePeakRSS reads the line "VmHWM:	   12345 kB".
func parsePeakRSS(status []byte) (int64, error) {
	_, rest, ok := bytes.Cut(status, []byte("\nVmHWM:"))
	if !ok {
		return 0, errors.New("no VmHWM")
	}
	fields := bytes.Fields(rest)
	if len(fields) < 2 || string(fields[1]) != "kB" {
		return 0, errors.New("VmHWM is not in kB")
	}
	kb, err := strconv.ParseInt(string(fields[0]), 10, 64)
	return kb << 10, err
}
