package vxlan

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/logging"
)

// Before Linux 5.7 a packet that MASQUERADE --random-fully has changed leaves a
// VXLAN device with a wrong checksum, if the device need not compute it: services
// of a cluster cannot be reached from hosts (flannel-io/flannel#1279, where the
// remedy is "ethtool -K flannel.1 tx-checksum-ip-generic off";
// projectcalico/felix#2811, where the version is from).
const mendedMajor, mendedMinor = 5, 7

// mendChecksums turns the device's checksum offload off on such kernels: inner
// checksums are then computed before the packet enters the tunnel.
func (d *Device) mendChecksums() error {
	release := d.cfg.release
	if release == "" {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return fmt.Errorf("read the kernel's version: %w", err)
		}
		release = unix.ByteSliceToString(u.Release[:])
	}
	if !checksumsBroken(release) {
		return nil
	}
	changed, err := d.turnChecksumsOff()
	if err != nil {
		return err
	}
	if changed {
		d.cfg.Logger.Info("checksum offload of the device is off: this kernel writes wrong checksums with it",
			logging.KeyDevice, d.name, logging.KeyVersion, release, logging.KeyRemedy, "Linux 5.7 or later")
	}
	return nil
}

// checksumsBroken reports whether a kernel is one of those. Of a release that
// cannot be read nothing is assumed.
func checksumsBroken(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major < mendedMajor || major == mendedMajor && minor < mendedMinor
}

// turnChecksumsOff does what ethtool -K tx off does, and says whether it was
// on. Of a VXLAN device that is the feature tx-checksum-ip-generic alone. There
// is ethtool over netlink, but only where the kernel is a mended one.
func (d *Device) turnChecksumsOff() (changed bool, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("turn checksum offload of %s off: open socket: %w", d.name, err)
	}
	defer unix.Close(fd)
	on, err := ethtoolValue(fd, d.name, unix.ETHTOOL_GTXCSUM, 0)
	if err != nil {
		return false, fmt.Errorf("read checksum offload of %s: %w", d.name, err)
	}
	if on == 0 {
		return false, nil
	}
	if _, err := ethtoolValue(fd, d.name, unix.ETHTOOL_STXCSUM, 0); err != nil {
		return false, fmt.Errorf("turn checksum offload of %s off: %w; do it by hand: ethtool -K %s tx-checksum-ip-generic off", d.name, err, d.name)
	}
	return true, nil
}

// ethtoolValue is the ioctl SIOCETHTOOL with a struct ethtool_value
// (linux/ethtool.h): a command and a number, which it returns as the kernel left
// it.
func ethtoolValue(fd int, link string, command, value uint32) (uint32, error) {
	buf := new([8]byte)
	binary.NativeEndian.PutUint32(buf[:], command)
	binary.NativeEndian.PutUint32(buf[4:], value)
	// struct ifreq with a pointer as its union, which unix.Ifreq cannot carry.
	req := &struct {
		name [unix.IFNAMSIZ]byte
		data *[8]byte
		_    [16]byte
	}{data: buf}
	copy(req.name[:unix.IFNAMSIZ-1], link)
	// Pinned, they stay where they are while the kernel has their addresses as
	// numbers.
	var pin runtime.Pinner
	pin.Pin(buf)
	pin.Pin(req)
	defer pin.Unpin()
	if err := unix.IoctlSetInt(fd, unix.SIOCETHTOOL, int(uintptr(unsafe.Pointer(req)))); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(buf[4:]), nil
}
