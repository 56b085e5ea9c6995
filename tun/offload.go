package tun

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const devNetTun = "/dev/net/tun"

// errNoOffload means that the kernel has no offload device; a plain one may work.
var errNoOffload = errors.New("the kernel refuses the virtio-net header on TUN")

// Offloads are the TUN_F_ bits of TUNSETOFFLOAD: the work that the kernel may leave
// undone on packets that are read. It accepts the same on packets that are written.
type Offloads uint

// TCP reports whether TCP super-packets of both IP versions may be written.
func (o Offloads) TCP() bool {
	return o&(unix.TUN_F_TSO4|unix.TUN_F_TSO6) == unix.TUN_F_TSO4|unix.TUN_F_TSO6
}

// UDP reports whether UDP super-packets of both IP versions may be written
// (Linux 6.2).
func (o Offloads) UDP() bool {
	return o&(unix.TUN_F_USO4|unix.TUN_F_USO6) == unix.TUN_F_USO4|unix.TUN_F_USO6
}

// String returns the names of the bits.
func (o Offloads) String() string {
	var names []string
	for _, bit := range []struct {
		mask Offloads
		name string
	}{
		{unix.TUN_F_CSUM, "CSUM"}, {unix.TUN_F_TSO4, "TSO4"}, {unix.TUN_F_TSO6, "TSO6"},
		{unix.TUN_F_TSO_ECN, "TSO_ECN"}, {unix.TUN_F_USO4, "USO4"}, {unix.TUN_F_USO6, "USO6"},
	} {
		if o&bit.mask != 0 {
			names = append(names, bit.name)
		}
	}
	return strings.Join(names, " ")
}

// offloadSteps are the sets of offloads to request, best first: UDP
// segmentation came with Linux 6.2, the others are older than any kernel that
// runs Go.
var offloadSteps = []Offloads{
	unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_USO4 | unix.TUN_F_USO6,
	unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN,
}

// openOffload opens n queues of an offload device, which already exists if left is set.
// The error wraps errNoOffload if only the offloads failed.
func openOffload(name string, n int, left bool) ([]Queue, Offloads, error) {
	var queues []Queue
	fail := func(err error) ([]Queue, Offloads, error) {
		for _, q := range queues {
			_ = q.Close()
		}
		return nil, 0, err
	}
	// All queues of a device must be opened with the same flags.
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if n > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	var granted Offloads
	for i := range n {
		// The first queue creates the device. Without IFF_TUN_EXCL it could
		// become an additional queue of another process's device.
		exclusive := uint16(0)
		if i == 0 && !left {
			exclusive = unix.IFF_TUN_EXCL
		}
		fd, err := attach(name, flags, exclusive)
		if err != nil {
			return fail(err)
		}
		q := &offloadQueue{fd: fd, writeFD: fd}
		queues = append(queues, q)
		if granted, err = setOffloads(fd); err != nil {
			return fail(err)
		}
		if n > 1 {
			if q.writeFD, err = attachDetached(name, flags); err != nil {
				q.writeFD = fd
				return fail(err)
			}
		}
	}
	return queues, granted, nil
}

// attach opens /dev/net/tun and makes it a queue of the device name. exclusive
// is IFF_TUN_EXCL or 0; that flag is not a feature of the device.
func attach(name string, flags, exclusive uint16) (fd int, err error) {
	fd, err = openNode(unix.O_RDWR | unix.O_CLOEXEC | unix.O_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if have, err := features(fd); err != nil || have&flags&^unix.IFF_TUN != flags&^unix.IFF_TUN {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("TUNGETFEATURES: %w", errNoOffload)
	}
	if err := setInterface(fd, name, flags|exclusive); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// setInterface makes fd a queue of the device name, with headers of HeaderLen.
func setInterface(fd int, name string, flags uint16) error {
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(flags)
		err = ioctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	if err := ioctlInt(fd, unix.TUNSETVNETHDRSZ, HeaderLen); err != nil {
		return fmt.Errorf("TUNSETVNETHDRSZ: %w", err)
	}
	return nil
}

// The ioctls of setInterface. They are variables because a test makes them fail one
// by one: no kernel refuses the second on a device on which the first has succeeded.
var (
	ioctlIfreq = unix.IoctlIfreq
	ioctlInt   = unix.IoctlSetPointerInt
)

// attachDetached opens a queue of the device name that accepts writes but to which
// the kernel delivers no packets (IFF_DETACH_QUEUE, Linux 3.8).
//
// A write to an attached queue makes the kernel deliver the flow's packets in the
// other direction to that queue (tun_flow_update in drivers/net/tun.c). Everything a
// peer sends from one port arrives on one socket, so a single reply would move a flow
// to the queue of that socket's shard, past packets waiting in another queue, and all
// flows to the peer would end up on one shard. The kernel learns nothing from writes
// to a detached queue, so flows stay on the queue that their hash selects.
func attachDetached(name string, flags uint16) (fd int, err error) {
	if fd, err = attach(name, flags, 0); err != nil {
		return -1, err
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_DETACH_QUEUE)
		err = unix.IoctlIfreq(fd, unix.TUNSETQUEUE, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("TUNSETQUEUE: %w", err)
	}
	return fd, nil
}

// setOffloads enables as many offloads as the kernel grants.
func setOffloads(fd int) (Offloads, error) {
	var err error
	for _, o := range offloadSteps {
		if err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(o)); err == nil {
			return o, nil
		}
	}
	return 0, fmt.Errorf("%w (TUNSETOFFLOAD: %w)", errNoOffload, err)
}

// offloadQueue reads and writes packets with their virtio-net header.
type offloadQueue struct {
	fd      int
	writeFD int // fd, or a detached queue if the device has several
}

func (q *offloadQueue) Read(b []byte) (int, unix.Errno) { return readFD(q.fd, b) }

func (q *offloadQueue) Write(iov []unix.Iovec) unix.Errno { return writevFD(q.writeFD, iov) }

// Steer writes to the attached queue, see attachDetached.
func (q *offloadQueue) Steer(iov []unix.Iovec) unix.Errno { return writevFD(q.fd, iov) }

func (q *offloadQueue) FD() int { return q.fd }

func (q *offloadQueue) Close() error {
	err := unix.Close(q.fd)
	if q.writeFD != q.fd {
		err = errors.Join(err, unix.Close(q.writeFD))
	}
	return err
}
