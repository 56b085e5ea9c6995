package daemon

import (
	"fmt"
	"net"
)

// States of a service, sd_notify(3).
const (
	notifyReady    = "READY=1"
	notifyStopping = "STOPPING=1"
)

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
