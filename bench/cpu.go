package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// userHZ is the unit of /proc/stat and /proc/PID/stat, the same on every
// architecture that Go runs on.
const userHZ = 100

// machineCPU returns the CPU time that all CPUs together have spent on
// anything, interrupts included, since boot. Time stolen by a hypervisor is
// not in it.
func machineCPU() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	// cpu user nice system idle iowait irq softirq steal guest guest_nice;
	// guest time is in user already.
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins %q, want the sum of all CPUs", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHZ, nil
}

// processCPU returns the CPU time of a process with all its threads.
func processCPU(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, can hold anything; state is the first field
	// after it, utime and stime the 12th and 13th.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s is cut short", path)
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / userHZ, nil
}

// meter measures CPU time from its start on.
type meter struct {
	started time.Time
	machine time.Duration
	daemons time.Duration
	pids    []int
}

// usage is what a meter has seen.
type usage struct {
	elapsed, machine, daemons time.Duration
}

func startMeter(pids []int) (*meter, error) {
	m := &meter{pids: pids}
	u, err := m.read()
	m.started, m.machine, m.daemons = time.Now(), u.machine, u.daemons
	return m, err
}

func (m *meter) read() (u usage, err error) {
	if u.machine, err = machineCPU(); err != nil {
		return u, err
	}
	for _, pid := range m.pids {
		d, err := processCPU(pid)
		if err != nil {
			return u, err
		}
		u.daemons += d
	}
	return u, nil
}

// stop returns what has been used since the start.
func (m *meter) stop() (usage, error) {
	elapsed := time.Since(m.started)
	u, err := m.read()
	return usage{elapsed, u.machine - m.machine, u.daemons - m.daemons}, err
}
