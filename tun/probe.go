package tun

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Probe says whether this kernel has TUN devices and lets the process at them. It
// makes none, so that nobody who watches the interfaces sees anything. The error
// says what to do.
func Probe() error {
	fd, err := unix.Open(devNetTun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return explain("", fmt.Errorf("open %s: %w", devNetTun, err))
	}
	defer unix.Close(fd)
	if _, err := unix.IoctlGetInt(fd, unix.TUNGETFEATURES); err != nil {
		return explain("", fmt.Errorf("TUNGETFEATURES: %w", err))
	}
	return nil
}
