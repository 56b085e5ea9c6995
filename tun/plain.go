package tun

import (
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// plainQueue is the only queue of a plain device. water opens the device and
// owns it; packets go past its Read and Write, which park a goroutine in Go's
// poller for every packet, to the descriptor itself, so that what is ready can
// be drained.
type plainQueue struct {
	dev *water.Interface
	fd  int
}

// openPlain opens a plain device.
func openPlain(name string) (Queue, error) {
	cfg := water.Config{DeviceType: water.TUN}
	cfg.Name = name
	dev, err := water.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("open a plain device: %w", err)
	}
	q := &plainQueue{dev: dev, fd: -1}
	if f, ok := dev.ReadWriteCloser.(*os.File); ok {
		var conn syscall.RawConn
		if conn, err = f.SyscallConn(); err == nil {
			err = conn.Control(func(fd uintptr) { q.fd = int(fd) })
		}
	}
	if err == nil {
		err = unix.SetNonblock(q.fd, true)
	}
	if err != nil {
		_ = dev.Close()
		return nil, fmt.Errorf("descriptor of the plain device: %w", err)
	}
	unix.CloseOnExec(q.fd)
	return q, nil
}

// Read puts an empty virtio-net header before the packet: nothing was left
// undone on it.
func (q *plainQueue) Read(b []byte) (int, error) {
	clear(b[:HeaderLen])
	n, err := readFD(q.fd, b[HeaderLen:])
	return n + HeaderLen, err
}

// Write leaves the virtio-net header away; a packet that needs one cannot be
// written.
func (q *plainQueue) Write(iov []unix.Iovec) error { return writevFD(q.fd, iov[1:]) }

func (q *plainQueue) FD() int { return q.fd }

func (q *plainQueue) Close() error { return q.dev.Close() }
