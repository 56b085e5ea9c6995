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

// machineTime is how all CPUs together have spent their time since boot.
type machineTime struct {
	used   time.Duration // by anything on this machine, interrupts included
	stolen time.Duration // given by a hypervisor to others while this machine had work
}

func machineCPU() (t machineTime, err error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	return parseMachineCPU(line)
}

// parseMachineCPU reads the first line of /proc/stat: cpu user nice system idle
// iowait irq softirq steal guest guest_nice. Guest time is in user already.
func parseMachineCPU(line string) (t machineTime, err error) {
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, fmt.Errorf("/proc/stat begins with %q, want the sum of all CPUs", line)
	}
	var ticks [9]int64
	for i := 1; i < len(ticks); i++ {
		if ticks[i], err = strconv.ParseInt(fields[i], 10, 64); err != nil {
			return t, fmt.Errorf("/proc/stat: %w", err)
		}
	}
	t.used = time.Duration(ticks[1]+ticks[2]+ticks[3]+ticks[6]+ticks[7]) * time.Second / userHZ
	t.stolen = time.Duration(ticks[8]) * time.Second / userHZ
	return t, nil
}

// processCPU returns the CPU time of a process, all its threads included.
func processCPU(pid int) (time.Duration, error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, can contain any character; state is the first field
	// after it, utime and stime are the 12th and 13th.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("%s is truncated", path)
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
