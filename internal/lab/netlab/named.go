package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// nameDir is where ip-netns(8) keeps the names of namespaces: each is a file
// with the namespace mounted on it.
const nameDir = "/run/netns"

// NewNamed creates a namespace that `ip netns exec name` finds. Close removes the
// name, Detach leaves it.
func NewNamed(name string) (*Namespace, error) {
	path := filepath.Join(nameDir, name)
	n, err := create(name, path)
	if err != nil {
		return nil, fmt.Errorf("create network namespace %s: %w", path, explain(err))
	}
	return n, nil
}

// OpenNamed opens a namespace by its name. Close leaves the name in place.
func OpenNamed(name string) (*Namespace, error) {
	return OpenFile(name, filepath.Join(nameDir, name))
}

// OpenFile opens the namespace that is mounted on a file. Close leaves the file as it
// is.
func OpenFile(label, path string) (*Namespace, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n, err := hold(label, fd)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, explain(err))
	}
	return n, nil
}

// Detach is Close, but leaves the name that NewNamed gave.
func (n *Namespace) Detach() error {
	n.path = ""
	return n.Close()
}

// RemoveNamed removes the name of a namespace. The namespace itself ends with
// its last process and descriptor. It is not an error if the name does not
// exist.
func RemoveNamed(name string) error {
	return removeName(filepath.Join(nameDir, name))
}

// Named lists the names of namespaces that begin with prefix.
func Named(prefix string) ([]string, error) {
	names, err := filepath.Glob(filepath.Join(nameDir, prefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", nameDir, err)
	}
	for i, path := range names {
		names[i] = filepath.Base(path)
	}
	return names, nil
}

// giveName mounts the calling thread's network namespace on path.
func giveName(path string) error {
	if err := shareNames(); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("mount on %s: %w", path, err), os.Remove(path))
	}
	return nil
}

// shareNames makes nameDir a shared mount point, as ip-netns(8) and container runtimes
// do before they create their first name. If one of them did so later, it would mount the
// directory over itself: earlier mounts in it would become unreachable, and their names
// could not be removed (EBUSY).
func shareNames() error {
	if err := os.MkdirAll(nameDir, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(nameDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// Only one process at a time may check whether it is a mount point yet.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", nameDir, err)
	}
	share := func() error { return unix.Mount("", nameDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	if err = share(); err != unix.EINVAL {
		return err
	}
	if err := unix.Mount(nameDir, nameDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", nameDir, err)
	}
	return share()
}

// removeName undoes giveName; path may be empty.
func removeName(path string) error {
	if path == "" {
		return nil
	}
	// EINVAL: the file exists, but nothing is mounted on it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
