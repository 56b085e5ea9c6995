package daemon

import (
	"fmt"
	"net"
	"strings"

	"golang.org/x/sys/unix"
)

// States of a service, sd_notify(3).
const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
)

// reloadingNow is the state of a service that applies a change. systemd wants
// to know when that began, in microseconds of the monotonic clock, to tell it
// from one before.
func reloadingNow() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return "RELOADING=1" // never seen; it is enough for a Type=notify service
	}
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", now.Nano()/1000)
}

// statusLine is the line that "systemctl status" shows.
func statusLine(waiting string) string {
	if waiting == "" {
		return "STATUS=ready"
	}
	return "STATUS=waiting for " + strings.ReplaceAll(waiting, "\n", "; ")
}

// notify tells a state to the service manager on the datagram socket that it
// named in NOTIFY_SOCKET; a leading "@" stands for the abstract namespace.
// An empty path means that nobody wants to know.
func notify(path, state string) error {
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", state, err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(state)); err != nil {
		return fmt.Errorf("notify %s: %w", state, err)
	}
	return nil
}
