package tun

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Version is a version of Linux.
type Version struct{ Major, Minor int }

// String returns the version in the usual form: "6.2".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Before reports whether v is older than o.
func (v Version) Before(o Version) bool {
	return v.Major < o.Major || v.Major == o.Major && v.Minor < o.Minor
}

// Kernel returns the version of the running kernel, or the zero Version, which is
// older than any other, if it cannot be determined.
func Kernel() (v Version) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return Version{}
	}
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &v.Major, &v.Minor); err != nil {
		return Version{}
	}
	return v
}

// Feature is something that the kernel supports since some version. A test runs
// the probes and fails if the version and the probe contradict each other, so
// both are verified.
type Feature struct {
	Name  string
	Since Version
	// Probe returns nil if the kernel has the feature and the process may use
	// it. It leaves nothing behind.
	Probe func() error
}

// Verify runs the probe. It returns an error if the probe fails although the
// running kernel is new enough, or succeeds although the kernel is too old.
func (f Feature) Verify() error {
	err := f.Probe()
	switch kernel := Kernel(); {
	case err != nil && !kernel.Before(f.Since):
		return fmt.Errorf("%s: supported since Linux %s, but fails on Linux %s: %w", f.Name, f.Since, kernel, err)
	case err == nil && kernel.Before(f.Since):
		return fmt.Errorf("%s: supported only since Linux %s, but works on Linux %s", f.Name, f.Since, kernel)
	}
	return nil
}

// The features of TUN devices that Open uses. Probes that create a device do so in
// the network namespace of the calling thread, under a name that the kernel
// chooses.
var (
	featureVnetHdr    = Feature{"IFF_VNET_HDR", Version{2, 6}, func() error { return probeFlags(unix.IFF_VNET_HDR) }}
	featureMultiQueue = Feature{"IFF_MULTI_QUEUE", Version{3, 8}, func() error { return probeFlags(unix.IFF_MULTI_QUEUE) }}
	featureTSO        = Feature{"TUN_F_TSO4 and TUN_F_TSO6", Version{2, 6}, func() error { return probeOffloads(Offloads.TCP) }}
	featureUSO        = Feature{"TUN_F_USO4 and TUN_F_USO6", Version{6, 2}, func() error { return probeOffloads(Offloads.UDP) }}

	// Features lists all of them.
	Features = []Feature{featureVnetHdr, featureMultiQueue, featureTSO, featureUSO}
)

// features returns the flags that TUNSETIFF accepts on fd (TUNGETFEATURES).
func features(fd int) (uint16, error) {
	var f uint32
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TUNGETFEATURES, uintptr(unsafe.Pointer(&f))); errno != 0 {
		return 0, fmt.Errorf("TUNGETFEATURES: %w", errno)
	}
	return uint16(f), nil
}

func probeFlags(flags uint16) error {
	fd, err := unix.Open(devNetTun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", devNetTun, err)
	}
	defer unix.Close(fd)
	have, err := features(fd)
	if err == nil && have&flags != flags {
		err = errors.New("not in TUNGETFEATURES")
	}
	return err
}

func probeOffloads(wanted func(Offloads) bool) error {
	queues, granted, err := openOffload("", 1, false)
	if err != nil {
		return err
	}
	for _, q := range queues {
		defer q.Close()
	}
	if !wanted(granted) {
		return fmt.Errorf("TUNSETOFFLOAD grants only %s", granted)
	}
	return nil
}
