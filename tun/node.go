package tun

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// NodeMissing reports whether opening a device has to create /dev/net/tun first, which
// requires CAP_MKNOD.
func NodeMissing() bool { return unix.Access(devNetTun, unix.F_OK) == unix.ENOENT }

// openNode opens /dev/net/tun, and creates it first if it is missing: a container
// sees the host's devices only if they are passed to it, but runc lets every
// container create device nodes and use this one (its default rules include
// "c 10:200 rwm", except in releases 1.2.0 to 1.2.3). If there turns out to be no device
// behind the created node, it is removed again.
func openNode(flags int) (fd int, err error) {
	fd, err = unix.Open(devNetTun, flags, 0)
	if !errors.Is(err, unix.ENOENT) {
		return fd, wrapOpen(err)
	}
	// The device number is from the kernel's Documentation/admin-guide/devices.txt.
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
