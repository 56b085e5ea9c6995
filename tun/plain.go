package tun

import (
	"errors"
	"fmt"
	"os"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// plainQueue is the only queue of a plain device.
type plainQueue struct{ fd int }

// openPlain opens a plain device. water registers its descriptor with Go's poller,
// which would wake a thread of the runtime for every packet; the queue therefore
// uses a duplicate, which keeps the device open after water's is closed.
func openPlain(name string) (Queue, error) {
	cfg := water.Config{DeviceType: water.TUN}
	cfg.Name = name
	dev, err := water.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("open plain device: %w", err)
	}
	defer dev.Close()
	q := &plainQueue{fd: -1}
	f, ok := dev.ReadWriteCloser.(*os.File)
	if !ok {
		return nil, fmt.Errorf("get descriptor of the plain device: water has a %T", dev.ReadWriteCloser)
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("get descriptor of the plain device: %w", err)
	}
	if e := conn.Control(func(fd uintptr) { q.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); e != nil || err != nil {
		return nil, fmt.Errorf("duplicate descriptor of the plain device: %w", errors.Join(e, err))
	}
	if err := unix.SetNonblock(q.fd, true); err != nil {
		_ = unix.Close(q.fd)
		return nil, fmt.Errorf("get descriptor of the plain device: %w", err)
	}
	return q, nil
}

// Read puts an empty virtio-net header before the packet, since the kernel left
// nothing undone on it.
func (q *plainQueue) Read(b []byte) (int, unix.Errno) {
	clear(b[:HeaderLen])
	n, errno := readFD(q.fd, b[HeaderLen:])
	return n + HeaderLen, errno
}

// Write omits the virtio-net header; a packet that needs one cannot be written.
func (q *plainQueue) Write(iov []unix.Iovec) unix.Errno { return writevFD(q.fd, iov[1:]) }

// Steer is the same as Write, since there is no other queue.
func (q *plainQueue) Steer(iov []unix.Iovec) unix.Errno { return q.Write(iov) }

func (q *plainQueue) FD() int { return q.fd }

func (q *plainQueue) Close() error { return unix.Close(q.fd) }
