package kernelpath

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
)

// What outlives the process is pinned in the BPF file system, in a directory for each
// network namespace and TUN device.
const (
	bpfRoot = "/sys/fs/bpf"
	pinRoot = bpfRoot + "/twill"
)

// pinDir returns the directory for the TUN device in the network namespace of the calling
// thread.
func pinDir(tun string) (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("identify network namespace: %w", os.NewSyscallError("stat", err))
	}
	return filepath.Join(pinRoot, fmt.Sprintf("net-%d", ns.Ino), tun), nil
}

// mountBPF makes sure that the BPF file system is mounted. A mount made in a container
// disappears with the container.
func mountBPF() error {
	if isBPF() {
		return nil
	}
	// If two daemons start at the same time, only one of them may mount it: a second mount
	// would hide what the first has pinned. The lock is on the underlying directory.
	fd, err := unix.Open(bpfRoot, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w; a kernel with CONFIG_BPF_SYSCALL and a mounted /sys are required", bpfRoot, err)
	}
	defer unix.Close(fd)
	if err := lockFor(fd, mountingFor); err != nil {
		return fmt.Errorf("lock %s: %w", bpfRoot, err)
	}
	if isBPF() {
		return nil
	}
	if err := unix.Mount("bpf", bpfRoot, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RELATIME, "mode=0700"); err != nil {
		return fmt.Errorf("mount BPF file system on %s: %w", bpfRoot, err)
	}
	return nil
}

// mountingFor is how long to wait for another daemon to mount the BPF file system, which
// takes less than a millisecond. A lock that is held longer does not belong to such a
// daemon: any user of the host can take it, since everyone may open the directory.
const mountingFor = 2 * time.Second

// lockFor takes the lock on an open file. It waits for at most the given time, and then
// returns nil without the lock.
func lockFor(fd int, most time.Duration) error {
	for end := time.Now().Add(most); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return err
		case time.Now().After(end):
			return nil
		}
	}
}

func isBPF() bool {
	var fs unix.Statfs_t
	// On some architectures the field is a signed 32-bit number.
	return unix.Statfs(bpfRoot, &fs) == nil && uint32(fs.Type) == unix.BPF_FS_MAGIC
}

func remove(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Remove removes what a Path left for the TUN device: programs, maps, and the pair of
// interfaces. The daemon then carries everything in user space.
func Remove(tun string) error {
	if !Left(tun) {
		return nil
	}
	pins, err := pinDir(tun)
	if err != nil {
		return err
	}
	// A link ends with its last reference, the pin.
	errs := []error{removeFilters(tun, nil)}
	if isBPF() {
		errs = append(errs, os.RemoveAll(pins), removeEmpty(filepath.Dir(pins)), removeEmpty(pinRoot))
	}
	return errors.Join(append(errs, removePair(tun))...)
}

func removeEmpty(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// Left reports whether a Path of this or an earlier process has something in the kernel
// for the TUN device.
func Left(tun string) bool {
	if _, err := net.InterfaceByName(backend.KernelInput(tun)); err == nil {
		return true
	}
	pins, err := pinDir(tun)
	if err != nil {
		return false
	}
	_, err = os.Stat(pins)
	return err == nil
}
