package daemon

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// States of a service, sd_notify(3).
const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
	notifyAlive    = "WATCHDOG=1"
)

// watchdog returns the interval at which to send keep-alives to the service
// manager for the process with this pid, sd_watchdog_enabled(3). It is half the
// timeout after which the manager considers the service dead, or 0 if none is
// configured.
func watchdog(env environment, pid int) (time.Duration, error) {
	if of := env["WATCHDOG_PID"]; of != "" && of != strconv.Itoa(pid) {
		return 0, nil // it was inherited from the process for which it is meant
	}
	text := env["WATCHDOG_USEC"]
	if text == "" {
		return 0, nil
	}
	usec, err := strconv.ParseInt(text, 10, 64)
	if err != nil || usec < 2 || usec > math.MaxInt64/1000 {
		return 0, usagef("WATCHDOG_USEC: %q is not a number of microseconds", text)
	}
	return time.Duration(usec) * time.Microsecond / 2, nil
}

// reloadingNow is the state of a service that applies a change. systemd expects
// the time when that began, in microseconds of the monotonic clock, to
// distinguish it from an earlier one.
func reloadingNow() string {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return "RELOADING=1" // should not happen; this is enough for a Type=notify service
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

// notifyWithin is how long the service manager may take to make room for a message.
const notifyWithin = time.Second

// notify sends a state to the service manager on the datagram socket that it
// named in NOTIFY_SOCKET; a leading "@" stands for the abstract namespace. An
// empty path means no service manager.
func notify(path, state string) error {
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify %s: %w", state, err)
	}
	defer c.Close()
	// A manager that does not read must not block the daemon.
	if err = c.SetWriteDeadline(time.Now().Add(notifyWithin)); err == nil {
		_, err = c.Write([]byte(state))
	}
	if err != nil {
		return fmt.Errorf("notify %s: %w", state, err)
	}
	return nil
}
