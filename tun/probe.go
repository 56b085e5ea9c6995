package tun

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Probe reports whether this kernel has TUN devices and lets the process use
// them. It creates none, so watchers of the interfaces see no change. The error
// names the remedy.
func Probe() error {
	fd, err := openNode(unix.O_RDWR | unix.O_CLOEXEC)
	if err != nil {
		return explain("", err)
	}
	defer unix.Close(fd)
	if _, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES); err != nil {
		return explain("", fmt.Errorf("TUNGETFEATURES: %w", err))
	}
	return nil
}
