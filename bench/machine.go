package bench

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/bench/report"
)

// thisMachine describes the machine as far as /proc allows.
func thisMachine() report.Machine {
	m := report.Machine{CPU: "unknown CPU", CPUs: runtime.NumCPU(), Arch: runtime.GOARCH}
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

// thisBuild is the commit that this program was built from, with "+dirty" if
// files differed from it, and the Go version.
func thisBuild() (revision, goVersion string) {
	revision = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return revision, runtime.Version()
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true": // comes after the revision
			revision += "+dirty"
		}
	}
	return revision, runtime.Version()
}

// loadAverage is the load average of the last minute.
func loadAverage() (float64, error) {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	average, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/loadavg: %w", err)
	}
	return average, nil
}

// usedBefore measures how much of all CPUs' time is in use before any measurement
// starts, in percent. The load average would still reflect activity that has just
// ended, such as the build of this program.
func usedBefore() (float64, error) {
	before, err := machineCPU()
	if err != nil {
		return 0, err
	}
	const watch = 500 * time.Millisecond
	time.Sleep(watch)
	after, err := machineCPU()
	if err != nil {
		return 0, err
	}
	return 100 * float64(after.used-before.used) / float64(watch*time.Duration(runtime.NumCPU())), nil
}

// stolenMeter measures the CPU time that a hypervisor gives to others while
// there is work here.
type stolenMeter struct {
	started time.Time
	stolen  time.Duration
}

func startStolenMeter() (stolenMeter, error) {
	t, err := machineCPU()
	return stolenMeter{time.Now(), t.stolen}, err
}

// percent is the share of all CPUs' time since the start.
func (m stolenMeter) percent() (float64, error) {
	t, err := machineCPU()
	if err != nil {
		return 0, err
	}
	all := time.Since(m.started) * time.Duration(runtime.NumCPU())
	return 100 * float64(t.stolen-m.stolen) / float64(all), nil
}
