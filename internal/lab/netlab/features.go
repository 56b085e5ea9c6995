package netlab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands and sizes of linux/ethtool.h that golang.org/x/sys/unix does not
// define.
const (
	ethSSFeatures  = 4 // ETH_SS_FEATURES, the string set of feature names
	ethGStringLen  = 32
	ethtoolHeader  = 8  // cmd and size of ethtool_gfeatures and ethtool_sfeatures
	getBlockSize   = 16 // ethtool_get_features_block: available, requested, active, never_changed
	getBlockActive = 8
	setBlockSize   = 8 // ethtool_set_features_block: valid, requested
	featuresPerBlk = 32
)

// ethtool is one link's ETHTOOL ioctl, for the duration of a Namespace.Do.
type ethtool struct {
	fd   int
	link string
}

// call passes buf, which begins with the command, to the driver.
func (e ethtool) call(name string, buf []byte) error {
	// struct ifreq with a pointer as its union, which unix.Ifreq cannot carry.
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&buf[0])}
	copy(req.name[:unix.IFNAMSIZ-1], e.link)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(e.fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(buf)
	if errno != 0 {
		return fmt.Errorf("%s %s: %w", name, e.link, errno)
	}
	return nil
}

// names returns the kernel's feature names; the index is the feature's bit.
func (e ethtool) names() ([]string, error) {
	// struct ethtool_sset_info: cmd, reserved, mask of sets, one length.
	info := make([]byte, 20)
	binary.NativeEndian.PutUint32(info, unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<ethSSFeatures)
	if err := e.call("ETHTOOL_GSSET_INFO", info); err != nil {
		return nil, err
	}
	count := binary.NativeEndian.Uint32(info[16:])

	// struct ethtool_gstrings: cmd, string set, length, strings.
	buf := make([]byte, 12+count*ethGStringLen)
	binary.NativeEndian.PutUint32(buf, unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(buf[4:], ethSSFeatures)
	binary.NativeEndian.PutUint32(buf[8:], count)
	if err := e.call("ETHTOOL_GSTRINGS", buf); err != nil {
		return nil, err
	}
	var names []string
	for s := range slices.Chunk(buf[12:], ethGStringLen) {
		name, _, _ := bytes.Cut(s, []byte{0})
		names = append(names, string(name))
	}
	return names, nil
}

// active returns the features in force.
func (e ethtool) active(names []string) (map[string]bool, error) {
	blocks := (len(names) + featuresPerBlk - 1) / featuresPerBlk
	buf := make([]byte, ethtoolHeader+blocks*getBlockSize)
	binary.NativeEndian.PutUint32(buf, unix.ETHTOOL_GFEATURES)
	binary.NativeEndian.PutUint32(buf[4:], uint32(blocks))
	if err := e.call("ETHTOOL_GFEATURES", buf); err != nil {
		return nil, err
	}
	on := make(map[string]bool)
	for bit, name := range names {
		at := ethtoolHeader + bit/featuresPerBlk*getBlockSize + getBlockActive
		on[name] = binary.NativeEndian.Uint32(buf[at:])&(1<<(bit%featuresPerBlk)) != 0
	}
	return on, nil
}

// set requests the features in want and fails if the kernel does not apply all of
// them.
func (e ethtool) set(names []string, want map[string]bool) error {
	blocks := (len(names) + featuresPerBlk - 1) / featuresPerBlk
	buf := make([]byte, ethtoolHeader+blocks*setBlockSize)
	binary.NativeEndian.PutUint32(buf, unix.ETHTOOL_SFEATURES)
	binary.NativeEndian.PutUint32(buf[4:], uint32(blocks))
	for name, on := range want {
		bit := slices.Index(names, name)
		if bit < 0 {
			return fmt.Errorf("set %s of %s: this kernel has no such feature", name, e.link)
		}
		block := buf[ethtoolHeader+bit/featuresPerBlk*setBlockSize:]
		mask := uint32(1) << (bit % featuresPerBlk)
		binary.NativeEndian.PutUint32(block, binary.NativeEndian.Uint32(block)|mask)
		if on {
			block = block[4:]
			binary.NativeEndian.PutUint32(block, binary.NativeEndian.Uint32(block)|mask)
		}
	}
	if err := e.call("ETHTOOL_SFEATURES", buf); err != nil {
		return err
	}
	got, err := e.active(names)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			return fmt.Errorf("set %s of %s to %t: the kernel did not apply it", name, e.link, want[name])
		}
	}
	return nil
}

// withEthtool runs f with a link's ethtool and feature names.
func (n *Namespace) withEthtool(link string, f func(e ethtool, names []string) error) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("ethtool %s: socket: %w", link, err)
		}
		defer unix.Close(fd)
		e := ethtool{fd: fd, link: link}
		names, err := e.names()
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		if err := f(e, names); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		return nil
	})
}

// Features returns the offload features of a link by the kernel's names (see
// ethtool -k), true where in force.
func (n *Namespace) Features(link string) (on map[string]bool, err error) {
	err = n.withEthtool(link, func(e ethtool, names []string) error {
		on, err = e.active(names)
		return err
	})
	return on, err
}

// SetFeatures turns offload features of a link on or off by the kernel's names.
func (n *Namespace) SetFeatures(link string, want map[string]bool) error {
	return n.withEthtool(link, func(e ethtool, names []string) error {
		return e.set(names, want)
	})
}

// plainNIC makes a veth end behave like a network card without segmentation
// offload: packets are cut to the MTU before they leave, and packets that enter are
// merged by GRO. Checksum offload stays on, since nearly every card has it.
func (n *Namespace) plainNIC(link string) error {
	return n.cutToMTU(link, map[string]bool{"rx-gro": true})
}

// switchPort makes a veth end behave like the port of a switch: frames do not exceed the
// MTU in either direction.
func (n *Namespace) switchPort(link string) error {
	return n.cutToMTU(link, map[string]bool{"rx-gro": false})
}

// cutToMTU turns off all segmentation offload of a link and also sets the features
// in want.
func (n *Namespace) cutToMTU(link string, want map[string]bool) error {
	on, err := n.Features(link)
	if err != nil {
		return err
	}
	for name, active := range on {
		if active && strings.HasPrefix(name, "tx-") &&
			(strings.HasSuffix(name, "-segmentation") || strings.HasPrefix(name, "tx-gso-")) {
			want[name] = false
		}
	}
	return n.SetFeatures(link, want)
}
