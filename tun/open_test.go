package tun

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOffloadsString(t *testing.T) {
	for _, tt := range []struct {
		o        Offloads
		s        string
		tcp, udp bool
	}{
		{0, "", false, false},
		{unix.TUN_F_CSUM, "CSUM", false, false},
		{unix.TUN_F_CSUM | unix.TUN_F_TSO4, "CSUM TSO4", false, false},
		{offloadSteps[1], "CSUM TSO4 TSO6 TSO_ECN", true, false},
		{offloadSteps[1] | unix.TUN_F_USO4, "CSUM TSO4 TSO6 TSO_ECN USO4", true, false},
		{offloadSteps[0], "CSUM TSO4 TSO6 TSO_ECN USO4 USO6", true, true},
	} {
		if got := tt.o.String(); got != tt.s {
			t.Errorf("%#x: %q, want %q", uint(tt.o), got, tt.s)
		}
		if tt.o.TCP() != tt.tcp || tt.o.UDP() != tt.udp {
			t.Errorf("%s: TCP %t, UDP %t", tt.o, tt.o.TCP(), tt.o.UDP())
		}
	}
}

func TestOpenRefusesNamesThatNoInterfaceCanHave(t *testing.T) {
	for _, name := range []string{"", "sixteen-bytes-xx", strings.Repeat("x", 300)} {
		for _, mode := range []Switch{Auto, On, Off} {
			d, err := Open(Config{Name: name, Queues: 1, Offload: mode, Logger: slog.New(slog.DiscardHandler)})
			if err == nil {
				d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) || !strings.Contains(err.Error(), "1 to 15 bytes") {
				t.Errorf("%q, %s: %v", name, mode, err)
			}
		}
	}
}

func TestErrorsOfOpenNameTheRemedy(t *testing.T) {
	for _, tt := range []struct {
		errno  unix.Errno
		remedy string
	}{
		{unix.ENOENT, "modprobe tun"},
		{unix.ENODEV, "modprobe tun"},
		{unix.EBUSY, "--tun-name"},
		{unix.EPERM, "CAP_NET_ADMIN"},
		{unix.EACCES, "CAP_NET_ADMIN"},
		{unix.EINVAL, "ip link delete tun9"},
		{unix.ENOTTY, "mknod /dev/net/tun"},
		{unix.EMFILE, ""},
	} {
		err := explain("tun9", fmt.Errorf("TUNSETIFF: %w", tt.errno))
		if !errors.Is(err, tt.errno) || !strings.HasPrefix(err.Error(), "open TUN device tun9: TUNSETIFF: ") ||
			!strings.Contains(err.Error(), tt.remedy) {
			t.Errorf("%v: %q lacks %q", tt.errno, err, tt.remedy)
		}
	}
}

// TestRefusedIoctlIsReportedByItsName: the two ioctls that make a descriptor a
// queue fail for different reasons.
func TestRefusedIoctlIsReportedByItsName(t *testing.T) {
	defer func(ifreq func(int, uint, *unix.Ifreq) error, integer func(int, uint, int) error) {
		ioctlIfreq, ioctlInt = ifreq, integer
	}(ioctlIfreq, ioctlInt)
	granted := func(int, uint, *unix.Ifreq) error { return nil }
	refused := func(int, uint, *unix.Ifreq) error { return unix.EBUSY }
	sized := func(int, uint, int) error { return nil }
	tooSmall := func(int, uint, int) error { return unix.EINVAL }
	for _, tt := range []struct {
		ifreq   func(int, uint, *unix.Ifreq) error
		integer func(int, uint, int) error
		want    string
	}{
		{refused, sized, "TUNSETIFF: " + unix.EBUSY.Error()},
		{granted, tooSmall, "TUNSETVNETHDRSZ: " + unix.EINVAL.Error()},
	} {
		ioctlIfreq, ioctlInt = tt.ifreq, tt.integer
		if err := setInterface(-1, "tun9", unix.IFF_TUN); err == nil || err.Error() != tt.want {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
	ioctlIfreq, ioctlInt = granted, sized
	if err := setInterface(-1, "tun9", unix.IFF_TUN); err != nil {
		t.Error(err)
	}
}
