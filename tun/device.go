package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// ReadSize is the buffer size that Queue.Read requires, in bytes: the virtio-net
// header and the largest packet that an IP length field can describe.
const ReadSize = HeaderLen + 65535

// Queue is one queue of a device. It does not block: a call that would have to
// wait returns unix.EAGAIN, and FD can be polled. Any number of goroutines may
// read and write concurrently, since the kernel transfers whole packets.
//
// Read and Write return the bare error number, 0 for success: the forwarding
// loops branch on its value, and an interface value would have to be unwrapped
// for every packet.
type Queue interface {
	// Read reads one packet, preceded by its virtio-net header, into b, which
	// must have room for ReadSize bytes. It returns the number of bytes
	// read, header included.
	Read(b []byte) (int, unix.Errno)

	// Write writes one packet. The first vector must be exactly the
	// virtio-net header, the others are the packet; none is retained.
	Write(iov []unix.Iovec) unix.Errno

	// Steer is like Write, and also makes the kernel deliver the other direction of the
	// packet's flow to this queue, as long as Steer is called for a packet of the flow
	// every three seconds. On a device with one queue it is just Write.
	Steer(iov []unix.Iovec) unix.Errno

	// FD returns the file descriptor to poll. The queue still owns it.
	FD() int

	// Close closes the queue. The kernel removes the device when its last
	// queue is closed.
	Close() error
}

// Config describes the device to open.
type Config struct {
	Name    string // of the network interface, at most 15 bytes
	Queues  int    // number wanted; the plain device has one
	Offload Switch // whether to open the offload device or the plain one
	// Inherited is what Descriptors of another process returned. Open removes its
	// queues from the map. If they belong to an offload device of that name, it
	// uses all of them, whatever their number; otherwise it closes them.
	Inherited map[string]int
	// Left means that the device exists as an earlier process left it: persistent, and
	// with no open queue.
	Left   bool
	Logger *slog.Logger
}

// Device is an open TUN device.
type Device struct {
	Name    string
	Queues  []Queue
	State   Offload  // of the flag tun-offload: which kind of device it is, and why
	Granted Offloads // zero for the plain device
}

// Offload reports whether the device handles super-packets.
func (d *Device) Offload() bool { return d.State.InForce }

// Open creates the device in the network namespace of the calling thread. The
// interface is down and has no address, unless its queues were inherited. If
// Open fails, it leaves nothing behind.
// Errors name the cause and the remedy.
func Open(cfg Config) (*Device, error) {
	if cfg.Name == "" || len(cfg.Name) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("open TUN device %q: the name must have 1 to %d bytes", cfg.Name, unix.IFNAMSIZ-1)
	}
	d := &Device{Name: cfg.Name}
	inherited := takeQueues(cfg.Inherited)
	var fatal error
	state, err := cfg.Offload.Resolve("tun-offload", func() (string, error) {
		queues, granted, err := inherit(cfg.Name, inherited)
		if err != nil {
			inherited.close()
			queues, granted, err = openOffload(cfg.Name, cfg.Queues, cfg.Left)
		}
		if err != nil {
			// An error that the plain device would also hit does not justify a fallback.
			if !errors.Is(err, errNoOffload) {
				fatal = err
			}
			return "", err
		}
		d.Queues, d.Granted = queues, granted
		why := "granted: " + granted.String()
		if !granted.UDP() {
			why += "; USO needs Linux " + featureUSO.Since.String()
		}
		return why, nil
	})
	if fatal != nil {
		return nil, explain(cfg.Name, fatal)
	}
	if err != nil {
		inherited.close()
		return nil, fmt.Errorf("open TUN device %s: %w", cfg.Name, err)
	}
	d.State = state
	if !state.InForce {
		inherited.close()
		q, err := openPlain(cfg.Name)
		if err != nil {
			return nil, explain(cfg.Name, err)
		}
		d.Queues = []Queue{q}
	}
	cfg.Logger.Info("TUN device open",
		logging.KeyDevice, d.Name, logging.KeyOffload, state.InForce, logging.KeyWhy, state.Why, logging.KeyQueues, len(d.Queues))
	return d, nil
}

// SetPersistent sets whether the device, with its addresses and routes, outlives its
// queues and stays until it is deleted. The plain device does not support this.
func (d *Device) SetPersistent(on bool) error {
	if !d.Offload() {
		return fmt.Errorf("make TUN device %s persistent: it is the plain device: %s", d.Name, d.State.Why)
	}
	value := 0
	if on {
		value = 1
	}
	if err := unix.IoctlSetInt(d.Queues[0].FD(), unix.TUNSETPERSIST, value); err != nil {
		return fmt.Errorf("make TUN device %s persistent: TUNSETPERSIST: %w", d.Name, err)
	}
	return nil
}

// Close closes all queues, and with them the device, unless it is persistent. The name is
// free when it returns: Close waits for children that this process has forked but that
// have not called exec yet, since they hold copies of the queues.
func (d *Device) Close() error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	var errs []error
	for _, q := range d.Queues {
		errs = append(errs, q.Close())
	}
	return errors.Join(errs...)
}

// explain adds the remedy to an error from opening a device.
func explain(name string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, unix.ENOENT):
		remedy = "; " + devNetTun + " is missing: load the module (modprobe tun), or pass that device to the container, or grant it CAP_MKNOD to create the device"
	case errors.Is(err, unix.EBUSY):
		remedy = "; the name is in use, perhaps by another process: stop the flanneld or twilld that runs on this host, or choose another name with --tun-name"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		remedy = "; run as root or with CAP_NET_ADMIN, and allow the container to use " + devNetTun + " (device 10:200)"
	case errors.Is(err, unix.ENOTTY):
		remedy = "; " + devNetTun + " is not the TUN driver's device node: delete it and create it again (mknod " + devNetTun + " c 10 200)"
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		remedy = "; the kernel has no TUN driver: load the module (modprobe tun)"
	case errors.Is(err, unix.EINVAL):
		remedy = fmt.Sprintf("; an interface %s of another kind exists: delete it (ip link delete %s), or choose another name with --tun-name", name, name)
	}
	if name != "" {
		name = " " + name
	}
	return fmt.Errorf("open TUN device%s: %w%s", name, err, remedy)
}
