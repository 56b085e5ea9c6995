package handover

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors are open files by name. The holder of the map owns them.
type Descriptors map[string]int

// firstInherited is the first descriptor that a service manager passes,
// sd_listen_fds(3).
const firstInherited = 3

// maxInherited bounds the number of inherited descriptors: a device with 64 queues
// and its sockets.
const maxInherited = 512

// Inherit returns the descriptors that the service manager passed to the process
// pid, which is this one; an earlier run stored them. lookup finds an
// environment variable.
func Inherit(lookup func(string) string, pid int) (Descriptors, error) {
	if lookup("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(lookup("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxInherited {
		return nil, fmt.Errorf("LISTEN_FDS: want a number of descriptors up to %d, not %q", maxInherited, lookup("LISTEN_FDS"))
	}
	names := strings.Split(lookup("LISTEN_FDNAMES"), ":")
	d := make(Descriptors, n)
	for i := range n {
		fd := firstInherited + i
		unix.CloseOnExec(fd)
		if len(names) != n {
			continue // the descriptors cannot be identified
		}
		if old, twice := d[names[i]]; twice {
			_ = unix.Close(old)
		}
		d[names[i]] = fd
	}
	return d, nil
}

// Names returns the sorted names.
func (d Descriptors) Names() []string { return slices.Sorted(maps.Keys(d)) }

// Copy returns duplicates of descriptors, which the caller owns.
func Copy(fds map[string]int) (Descriptors, error) {
	d := make(Descriptors, len(fds))
	for name, fd := range fds {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("copy descriptor %s: %w", name, err), d.Close())
		}
		d[name] = c
	}
	return d, nil
}

// Close closes all descriptors.
func (d Descriptors) Close() error {
	var errs []error
	for _, fd := range d {
		errs = append(errs, unix.Close(fd))
	}
	clear(d)
	return errors.Join(errs...)
}
