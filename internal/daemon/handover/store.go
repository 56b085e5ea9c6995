package handover

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Store leaves copies of descriptors with the service manager that listens at
// socket (NOTIFY_SOCKET), under their names (FDSTORE=1, sd_notify(3), systemd
// 219; FDNAME=, 233). It keeps up to FileDescriptorStoreMax= of the unit, and
// silently drops the rest.
func Store(socket string, d Descriptors) error {
	return send(socket, d.Names(), func(name string) (state string, rights []byte) {
		return "FDSTORE=1\nFDNAME=" + name, unix.UnixRights(d[name])
	})
}

// Forget makes the service manager close the copies with these names.
func Forget(socket string, names []string) error {
	return send(socket, names, func(name string) (state string, rights []byte) {
		return "FDSTOREREMOVE=1\nFDNAME=" + name, nil
	})
}

// send sends a message for each name; a leading "@" of socket stands for the
// abstract namespace.
func send(socket string, names []string, message func(name string) (state string, rights []byte)) error {
	if socket == "" || len(names) == 0 {
		return nil
	}
	// Package net cannot send descriptors on a connected datagram socket.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("store descriptors with the service manager: %w", err)
	}
	defer unix.Close(fd)
	// A service manager that does not read must not block the daemon.
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout); err != nil {
		return fmt.Errorf("store descriptors with the service manager: %w", err)
	}
	for _, name := range names {
		state, rights := message(name)
		// The kernel restarts no call with SO_SNDTIMEO after a signal (signal(7)), and Go's
		// scheduler sends some.
		var err error = unix.EINTR
		for err == unix.EINTR {
			err = unix.Sendmsg(fd, []byte(state), rights, &unix.SockaddrUnix{Name: socket}, 0)
		}
		if err != nil {
			return fmt.Errorf("store descriptor %s with the service manager: %w", name, err)
		}
	}
	return nil
}
