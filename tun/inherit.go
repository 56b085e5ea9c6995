package tun

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// A queue outlives the process that opened it if another process holds copies of
// its descriptors. The device and the packets waiting in the queue survive with it.

// errNotInherited reports descriptors that do not belong to the device.
var errNotInherited = errors.New("cannot use inherited descriptors")

func readName(i int) string  { return "tun-" + strconv.Itoa(i) }
func writeName(i int) string { return "tun-" + strconv.Itoa(i) + "-write" }

// Descriptors returns the descriptors of the queues by name, for [Config.Inherited]
// of another process. The device still owns them. The plain device returns none.
func (d *Device) Descriptors() map[string]int {
	fds := make(map[string]int)
	for i, q := range d.Queues {
		q, ok := q.(*offloadQueue)
		if !ok {
			return nil
		}
		fds[readName(i)] = q.fd
		if q.writeFD != q.fd {
			fds[writeName(i)] = q.writeFD
		}
	}
	return fds
}

// queueList lists the known queues of an offload device.
type queueList []*offloadQueue

// takeQueues takes all queues out of fds.
func takeQueues(fds map[string]int) (all queueList) {
	for i := 0; ; i++ {
		fd, ok := fds[readName(i)]
		if !ok {
			return all
		}
		q := &offloadQueue{fd: fd, writeFD: fd}
		if writeFD, ok := fds[writeName(i)]; ok {
			q.writeFD = writeFD
		}
		all = append(all, q)
		delete(fds, readName(i))
		delete(fds, writeName(i))
	}
}

// close closes all queues, which frees the device.
func (l queueList) close() {
	for _, q := range l {
		_ = q.Close()
	}
}

// inherit returns the queues if they belong to the device name.
func inherit(name string, list queueList) (queues []Queue, granted Offloads, err error) {
	for i, q := range list {
		for _, fd := range []int{q.fd, q.writeFD} {
			if err := isQueueOf(fd, name); err != nil {
				return nil, 0, fmt.Errorf("%w: %s: %w", errNotInherited, readName(i), err)
			}
		}
		if granted, err = setOffloads(q.fd); err != nil {
			return nil, 0, err
		}
		queues = append(queues, q)
	}
	if len(queues) == 0 {
		return nil, 0, errNotInherited
	}
	return queues, granted, nil
}

// isQueueOf reports whether fd is a queue of the offload device name. A device
// that was deleted has no queues: the kernel answers EBADFD.
func isQueueOf(fd int, name string) error {
	req, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return fmt.Errorf("TUNGETIFF: %w", err)
	}
	switch flags := req.Uint16(); {
	case req.Name() != name:
		return fmt.Errorf("device %s, not %s", req.Name(), name)
	case flags&(unix.IFF_TUN|unix.IFF_VNET_HDR|unix.IFF_NO_PI) != unix.IFF_TUN|unix.IFF_VNET_HDR|unix.IFF_NO_PI:
		return fmt.Errorf("flags %#x belong to another kind of device", flags)
	}
	return nil
}
