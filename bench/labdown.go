package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// endDaemons ends every twilld that was started with the given lease file. It
// searches all processes, because an interrupted LabUp has not recorded which
// ones it had started.
func endDaemons(leases string) error {
	var errs []error
	for _, pid := range daemonsOf(leases) {
		if err := endProcess(pid); err != nil {
			errs = append(errs, fmt.Errorf("end twilld, process %d: %w", pid, err))
		}
	}
	return errors.Join(errs...)
}

// daemonsOf lists the processes with the argument --lease-file=leases.
func daemonsOf(leases string) []int {
	var pids []int
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is well formed
	for _, path := range paths {
		cmdline, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended in the meantime
		}
		isArg := func(arg []byte) bool { return string(arg) == leaseFileFlag+leases }
		if !slices.ContainsFunc(bytes.Split(cmdline, []byte{0}), isArg) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// endProcess sends SIGTERM to a process that need not be a child, and SIGKILL
// if that is not enough.
func endProcess(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return unlessGone(err)
	}
	for deadline := time.Now().Add(stopTimeout); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		// The file is empty if the process has ended and its parent has not
		// waited for it yet.
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(cmdline) == 0 {
			return nil
		}
	}
	return unlessGone(syscall.Kill(pid, syscall.SIGKILL))
}

// unlessGone returns nil for the error of a process that no longer exists.
func unlessGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}
