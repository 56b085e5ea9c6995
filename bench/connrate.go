package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/bench/report"
)

const (
	// openers and acceptors are the threads that open and accept connections.
	openers   = 16
	acceptors = 2
)

// connections is the load of TCP connections that are closed as soon as they are
// opened, as many as the openers manage one after the other. The server closes first,
// so that TIME_WAIT is on its side and the client does not run out of ports.
func connections(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
	f, err := runConnections(ctx, c, d)
	if err != nil {
		return nil, fmt.Errorf("TCP connections: %w", err)
	}
	return f, nil
}

func runConnections(ctx context.Context, c *Connection, d time.Duration) (report.Figures, error) {
	listener, to, err := tcpListener(c.Server)
	if err != nil {
		return nil, err
	}
	var over atomic.Bool
	var opened, failed atomic.Int64
	var servers, clients sync.WaitGroup
	defer unix.Close(listener)
	defer servers.Wait()
	defer clients.Wait()
	defer over.Store(true)
	for range acceptors {
		servers.Go(func() { acceptAndClose(listener, &over) })
	}
	for range openers {
		clients.Go(func() {
			// The thread of Do is inside the pod, and so are its sockets.
			c.Client.NS.Do(func() error {
				to := to // connect writes into it
				for !over.Load() {
					if openAndClose(&to) == nil {
						opened.Add(1)
					} else {
						failed.Add(1)
					}
				}
				return nil
			})
		})
	}
	if err := sleep(ctx, warmUp); err != nil {
		return nil, err
	}
	m, err := startMeter(c.pids())
	if err != nil {
		return nil, err
	}
	n, bad := opened.Load(), failed.Load()
	if err := sleep(ctx, d); err != nil {
		return nil, err
	}
	n, bad = opened.Load()-n, failed.Load()-bad
	u, err := m.stop()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("no connection could be opened")
	}
	return u.memory(report.Figures{
		report.ConnectionRate.Key: float64(n) / u.elapsed.Seconds(),
		report.CPUPerMillion.Key:  u.machine.Seconds() / (float64(n) / 1e6),
		report.Loss.Key:           100 * float64(bad) / float64(n+bad),
	}), nil
}

// tcpListener listens on a free port of an endpoint's IPv4 address.
func tcpListener(e Endpoint) (fd int, bound unix.SockaddrInet4, err error) {
	if fd, err = tcpSocketIn(e); err != nil {
		return -1, bound, err
	}
	if bound, err = listenTCP(fd, e.Addr); err != nil {
		unix.Close(fd)
		return -1, bound, fmt.Errorf("%s: listen on %s: %w", e.NS, e.Addr, err)
	}
	return fd, bound, nil
}

func tcpSocketIn(e Endpoint) (fd int, err error) {
	err = e.NS.Do(func() error {
		fd, err = tcpSocket()
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("%s: %w", e.NS, err)
	}
	return fd, nil
}

// tcpSocket opens a socket whose calls do not block for long.
func tcpSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("TCP socket: %w", err)
	}
	if err := setTimeouts(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func listenTCP(fd int, addr netip.Addr) (bound unix.SockaddrInet4, err error) {
	bound.Addr = addr.As4()
	if err := unix.Bind(fd, &bound); err != nil {
		return bound, err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return bound, err
	}
	got, err := unix.Getsockname(fd)
	if err != nil {
		return bound, err
	}
	bound.Port = got.(*unix.SockaddrInet4).Port
	return bound, nil
}

// acceptAndClose accepts connections and closes each immediately, until over.
func acceptAndClose(listener int, over *atomic.Bool) {
	for !over.Load() {
		if fd, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC); err == nil {
			unix.Close(fd)
		}
	}
}

// openAndClose opens a connection, waits until the server closes it, and closes
// it too.
func openAndClose(to unix.Sockaddr) error {
	fd, err := tcpSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, to); err != nil {
		return err
	}
	var buf [1]byte
	_, err = unix.Read(fd, buf[:])
	return err
}
