package tun

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openNode opens /dev/net/tun, after making it where it is missing: a container
// has no devices of the host's unless somebody gives them to it, but runc lets every
// container make nodes and use this one (its default rules have "c 10:200 rwm", but
// for releases 1.2.0 to 1.2.3). A node that leads to nothing is removed again.
func openNode(flags int) (fd int, err error) {
	fd, err = unix.Open(devNetTun, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, wrapOpen(err)
	}
	// The number is from Documentation/admin-guide/devices.txt of the kernel.
	_ = unix.Mkdir(filepath.Dir(devNetTun), 0o755)
	if unix.Mknod(devNetTun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))) != nil {
		return fd, wrapOpen(err)
	}
	fd, err = unix.Open(devNetTun, flags, 0)
	if err != nil {
		_ = unix.Unlink(devNetTun)
	}
	return fd, wrapOpen(err)
}

func wrapOpen(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("open %s: %w", devNetTun, err)
}
