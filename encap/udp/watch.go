package udp

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// watchBuffer is the room for changes of interfaces that keep has not seen yet,
// in bytes: thousands of pods may start and stop at once.
const watchBuffer = 4 << 20

// watch subscribes to changes of interfaces.
func (l *link) watch() error {
	updates, done := make(chan netlink.LinkUpdate), make(chan struct{})
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ReceiveBufferSize:      watchBuffer,
		ReceiveBufferForceSize: true,
	})
	if err != nil {
		return fmt.Errorf("watch interface %s: %w", l.name, err)
	}
	l.updates, l.done = updates, done
	return nil
}

// keep puts addresses and routes back when the device comes up again, until ctx
// is done: the kernel takes the routes and the IPv6 addresses away when
// somebody sets it down.
func (l *link) keep(ctx context.Context) {
	up := true
	for {
		select {
		case <-ctx.Done():
			return
		case u, ok := <-l.updates:
			if !ok {
				l.logger.Warn("interfaces cannot be watched any more", "device", l.name,
					"remedy", "restart twilld if the device has been set down")
				return
			}
			if int(u.Index) != l.index {
				continue
			}
			was := up
			up = u.Flags&unix.IFF_UP != 0
			if up && !was {
				l.restore()
			}
		}
	}
}

func (l *link) restore() {
	err := l.apply()
	if errors.Is(err, unix.ENETDOWN) {
		return // down again meanwhile: the next event tells when it is up
	}
	if err != nil {
		l.logger.Warn("device is up again without its routes", "device", l.name, "error", err)
		return
	}
	l.logger.Info("device is up again, its routes are back", "device", l.name)
}

// close ends the watch. The interface goes with the device.
func (l *link) close() {
	if l.done != nil {
		close(l.done)
		for range l.updates { // or else the sender would wait for ever
		}
	}
	l.nl.Close()
}
