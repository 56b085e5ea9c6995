package tun_test

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/tun"
)

// Opening a device takes CAP_NET_ADMIN. Its interface is down and has no address.
func ExampleOpen() {
	d, err := tun.Open(tun.Config{Name: "flannel0", Queues: 4, Offload: tun.Auto, Logger: slog.Default()})
	if err != nil {
		fmt.Println(err) // with the remedy
		return
	}
	defer d.Close()
	fmt.Println("super-packets:", d.Offload(), d.State.Why)

	b := make([]byte, tun.ReadSize)
	switch n, errno := d.Queues[0].Read(b); errno {
	case 0:
		var h tun.Header
		h.Decode(b)
		fmt.Println("a packet of", n-tun.HeaderLen, "bytes, to be cut into segments of", h.GSOSize)
	case unix.EAGAIN:
		fmt.Println("nothing to read: poll", d.Queues[0].FD())
	default:
		fmt.Println(errno)
	}
}

// A switch is a flag, and decides with a probe whether an offload is in force.
func ExampleSwitch_Resolve() {
	probe := func() (string, error) { return "", errors.New("kernel lacks it") }
	for _, value := range []string{"auto", "off", "on"} {
		var s tun.Switch
		if err := s.Set(value); err != nil {
			panic(err)
		}
		state, err := s.Resolve("udp-gso", probe)
		fmt.Println(state.InForce, state.Why, err)
	}
	// Output:
	// false refused: kernel lacks it <nil>
	// false turned off by --udp-gso <nil>
	// false refused: kernel lacks it --udp-gso=on: kernel lacks it; use --udp-gso=auto to run without it
}
