// Package capability reduces the capabilities of this process, capabilities(7), in all of
// its threads.
//
// The kernel keeps capabilities for each thread. Go's scheduler moves goroutines between
// threads, and starts threads when it needs them, so a goroutine could not know its set
// if threads had different ones. Set.Keep therefore changes all threads together: the
// runtime stops the world, no thread is created meanwhile, and those created later are
// clones of one that was changed (syscall.AllThreadsSyscall).
package capability

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Set is a set of capabilities: bit n is capability number n.
type Set uint64

// Of returns the set of the capabilities with these numbers, such as
// unix.CAP_NET_ADMIN.
func Of(numbers ...int) (s Set) {
	for _, n := range numbers {
		s |= 1 << n
	}
	return s
}

// Has reports whether all of o are in s.
func (s Set) Has(o Set) bool { return s&o == o }

// names are those of include/uapi/linux/capability.h, by number.
var names = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// Names returns the names of the capabilities without "CAP_", in the order of their
// numbers.
func (s Set) Names() []string {
	all := make([]string, 0, bits.OnesCount64(uint64(s)))
	for n := range 64 {
		switch {
		case !s.Has(Of(n)):
		case n < len(names):
			all = append(all, names[n])
		default: // known to later kernels
			all = append(all, fmt.Sprint(n))
		}
	}
	return all
}

// String returns the names with spaces between them.
func (s Set) String() string { return strings.Join(s.Names(), " ") }

// sets are the three sets of a thread that capget(2) and capset(2) transfer.
type sets struct{ effective, permitted, inheritable Set }

func header() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3} // Pid 0: the calling thread
}

func get() (sets, error) {
	var d [2]unix.CapUserData
	if err := unix.Capget(header(), &d[0]); err != nil {
		return sets{}, fmt.Errorf("read capabilities: %w", os.NewSyscallError("capget", err))
	}
	join := func(low, high uint32) Set { return Set(high)<<32 | Set(low) }
	return sets{
		join(d[0].Effective, d[1].Effective), join(d[0].Permitted, d[1].Permitted), join(d[0].Inheritable, d[1].Inheritable),
	}, nil
}

func (s *sets) data() *[2]unix.CapUserData {
	var d [2]unix.CapUserData
	for i := range d {
		shift := 32 * i
		d[i] = unix.CapUserData{
			Effective: uint32(s.effective >> shift), Permitted: uint32(s.permitted >> shift), Inheritable: uint32(s.inheritable >> shift),
		}
	}
	return &d
}

// Permitted returns the capabilities that this process has or can give itself.
func Permitted() (Set, error) {
	s, err := get()
	return s.permitted, err
}

// Keep permanently drops all capabilities that are not in s: in the permitted,
// effective and inheritable sets of all threads, and thereby in the ambient set. Programs
// that are run later get no others, regardless of their owner, if NoNewPrivileges was
// called. Keep returns the capabilities that are left.
//
// It fails, and changes nothing, in a program built with cgo, where Go does not know all
// threads, and where a seccomp filter forbids capset(2).
func (s Set) Keep() (Set, error) {
	was, err := get()
	if err != nil {
		return 0, err
	}
	if s.Has(was.permitted | was.inheritable) {
		return was.permitted, nil
	}
	is := sets{permitted: was.permitted & s, inheritable: was.inheritable & s}
	is.effective = is.permitted
	h, d := header(), is.data()
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(h)), uintptr(unsafe.Pointer(d)), 0); errno != 0 {
		return was.permitted, fmt.Errorf("drop capabilities %s: %w", was.permitted&^s, explain("capset", errno))
	}
	return is.permitted, nil
}

// NoNewPrivileges makes sure that no program that this process runs later gains
// privileges by its file: neither by a set-user-ID bit or file capabilities, nor because
// root runs it (PR_SET_NO_NEW_PRIVS, Linux 3.5). It fails as Keep does.
func NoNewPrivileges() error {
	if HasNoNewPrivileges() {
		return nil
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("set no_new_privs: %w", explain("prctl", errno))
	}
	return nil
}

// HasNoNewPrivileges reports whether NoNewPrivileges is in effect for this process.
func HasNoNewPrivileges() bool {
	v, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	return err == nil && v == 1
}

// explain returns the error of a system call in all threads.
func explain(call string, errno syscall.Errno) error {
	err := os.NewSyscallError(call, errno)
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return fmt.Errorf("%w: this binary was built with cgo; build it with CGO_ENABLED=0", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: a seccomp filter blocks it", err)
	}
	return err
}
