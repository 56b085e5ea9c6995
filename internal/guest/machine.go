package guest

import (
	"fmt"
	"strings"
)

// machine is a computer that qemu emulates.
type machine struct {
	qemu    string // the program
	debian  string // its package
	args    []string
	console string // how Linux calls its first serial port
}

// machines are the computers, by Go's name of their architecture.
var machines = map[string]machine{
	"amd64": {"qemu-system-x86_64", "qemu-system-x86", []string{"-machine", "q35,accel=tcg", "-cpu", "max"}, "ttyS0"},
	// The memory of PCI has to lie where 32 bits reach it.
	"arm":   {"qemu-system-arm", "qemu-system-arm", []string{"-machine", "virt,accel=tcg,highmem=off", "-cpu", "cortex-a15"}, "ttyAMA0"},
	"arm64": {"qemu-system-aarch64", "qemu-system-arm", []string{"-machine", "virt,accel=tcg", "-cpu", "cortex-a57"}, "ttyAMA0"},
}

// memory of a guest, in MiB. The initramfs stays in it.
const memory = 512

// command returns the arguments of qemu. The descriptors of the network cards
// are 3 and those after it.
func (m machine) command(kernel, initramfs string, nics int) []string {
	args := append([]string(nil), m.args...)
	args = append(args,
		"-m", fmt.Sprint(memory), "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs,
		// A panic is the end: it restarts at once, which -no-reboot makes an
		// exit. edd=off spares the search for disks.
		"-append", strings.Join([]string{"console=" + m.console, "quiet", "panic=-1", "edd=off"}, " "))
	for i := range nics {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, 3+i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=02:74:77:67:00:%02x,romfile=", i, i))
	}
	return args
}
