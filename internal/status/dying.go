package status

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Fields of /proc/PID/stat after the program's name, proc_pid_stat(5):
const (
	statState = 0
	statFlags = 6
)

// pfExiting is PF_EXITING in the flags of a task (include/linux/sched.h): it is
// being torn down.
const pfExiting = 0x4

// dying reports whether a process has ended, is a zombie whose threads may still
// be closing its files, is being torn down, or has a pending SIGKILL.
func dying(pid int) bool {
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return true
	}
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil { // it ended just now, or is hidden (hidepid=)
		return false
	}
	// The name, in parentheses, may contain any character.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) <= statFlags {
		return false
	}
	flags, _ := strconv.ParseUint(fields[statFlags], 10, 64)
	return strings.ContainsAny(fields[statState], "ZXx") || flags&pfExiting != 0 || killed(dir)
}

// killed reports whether SIGKILL is pending, for the main thread or for the whole
// process.
func killed(dir string) bool {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		name, mask, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		bits, _ := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		if bits&(1<<(unix.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}
