package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/status"
)

// startDaemon starts the unit that deploy/systemd installs.
const startDaemon = "systemctl start twilld"

func (x *examination) daemon(context.Context) []Finding {
	switch d := x.Daemon; {
	case d == nil:
		return []Finding{badf(startDaemon, "%v", x.DaemonErr)}
	case d.Waiting != "":
		return []Finding{badf("journalctl -u twilld", "twilld %s is waiting for %s", d.Version, d.Waiting)}
	case d.AddressConflict != "":
		return []Finding{badf("", "%s", d.AddressConflict)}
	case d.Restart != "":
		return []Finding{warnf("systemctl restart twilld", "twilld %s needs a restart: %s", d.Version, d.Restart)}
	default:
		return []Finding{okf("twilld %s is ready", d.Version)}
	}
}

// privileges describes what the daemon may do.
func (x *examination) privileges(context.Context) []Finding {
	if x.Daemon == nil || x.Daemon.Privileges == nil { // of an earlier version
		return nil
	}
	return []Finding{okf("twilld has %s", x.Daemon.Privileges)}
}

// wantedFeatures are the flags of a TUN device that the offload engine needs,
// linux/if_tun.h.
const wantedFeatures = unix.IFF_VNET_HDR | unix.IFF_MULTI_QUEUE

// tunDevice opens the device file and queries its features, which creates no device.
// A node without the udp backend does not need it.
func (x *examination) tunDevice(context.Context) []Finding {
	if has := x.backends(); !slices.Contains(has, backend.UDP) {
		return []Finding{okf("not needed: %s carries the packets", has[0])}
	}
	fd, err := unix.Open(x.tun, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		remedy := ""
		switch err {
		case unix.ENOENT:
			remedy = fmt.Sprintf("mkdir -p %s && mknod %s c 10 200", filepath.Dir(x.tun), x.tun) // Documentation/admin-guide/devices.txt
		case unix.ENODEV, unix.ENXIO:
			remedy = "modprobe tun"
		}
		return []Finding{badf(remedy, "open %s: %v", x.tun, err)}
	}
	defer unix.Close(fd)
	features, err := unix.IoctlGetUint32(fd, unix.TUNGETFEATURES)
	switch {
	case err != nil:
		return []Finding{badf("modprobe tun", "%s is not a TUN device: %v", x.tun, err)}
	case features&wantedFeatures != wantedFeatures:
		return []Finding{warnf("", "TUN devices of this kernel support neither super-packets nor queues (features %#x); twilld uses the plain engine", features)}
	}
	if dp := x.dataplane(); dp != nil {
		if tun := dp.TUN(); tun != nil && tun.Kind == status.KindPlain && !byFlag(dp, "tun-offload") {
			return []Finding{warnf("", "%s uses the plain engine: %s", tun.Name, tun.Why)}
		}
	}
	return []Finding{okf("%s, features %#x", x.tun, features)}
}

func (x *examination) dataplane() *status.Dataplane {
	if x.Daemon == nil {
		return nil
	}
	return x.Daemon.Dataplane
}

// byFlag reports whether a flag switched an offload off.
func byFlag(dp *status.Dataplane, name string) bool {
	for _, o := range dp.Offloads {
		if o.Name == name {
			return o.Mode == "off"
		}
	}
	return false
}

// offloads checks that the kernel supports UDP_SEGMENT and UDP_GRO, and which
// offloads the daemon runs without.
func (x *examination) offloads(context.Context) []Finding {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return []Finding{warnf("", "open UDP socket: %v", err)}
	}
	defer unix.Close(fd)
	var found []Finding
	for _, o := range []struct {
		name   string
		option int
		since  string
	}{
		{"UDP_SEGMENT", unix.UDP_SEGMENT, "4.18"}, // bec1f6f69736
		{"UDP_GRO", unix.UDP_GRO, "5.0"},          // e20cf8d3f1f7
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_UDP, o.option, 1); err != nil {
			found = append(found, warnf("", "this kernel refuses %s (%v), which Linux supports since %s; twilld is slower without it", o.name, err, o.since))
		}
	}
	var off []string
	if dp := x.dataplane(); dp != nil {
		for _, o := range dp.Offloads {
			switch {
			case o.Name == backend.KernelPathFlag: // has a check of its own
			case o.Mode == "off":
				off = append(off, o.Name)
			case !o.InForce:
				found = append(found, warnf("", "%s is not active: %s", o.Name, o.Why))
			}
		}
	}
	switch {
	case len(found) > 0:
		return found
	case len(off) > 0:
		return []Finding{okf("all are active except those that are turned off: %s", strings.Join(off, ", "))}
	}
	return []Finding{okf("UDP_SEGMENT and UDP_GRO work")}
}

// Values of linux/timex.h:
const (
	timeError = 5    // TIME_ERROR, returned by adjtimex
	staUnsync = 0x40 // STA_UNSYNC
)

// synchronised checks whether the kernel considers its clock synchronised.
// Leases do not depend on it; certificates and the times in logs do.
func (x *examination) synchronised(context.Context) []Finding {
	var tx unix.Timex
	state, err := x.clock(&tx)
	switch {
	case err != nil:
		return []Finding{warnf("", "read the state of the clock: adjtimex: %v", err)}
	case state == timeError || tx.Status&staUnsync != 0:
		return []Finding{warnf("timedatectl set-ntp true", "the clock is not synchronised: certificates of etcd may seem invalid, and times in the logs of different nodes do not match")}
	}
	return []Finding{okf("synchronised, at most %d ms off", tx.Maxerror/1000)}
}
