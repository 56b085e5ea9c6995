package guest

import "fmt"

// machine is a computer that qemu emulates.
type machine struct {
	qemu    string // the program
	debian  string // its package
	args    []string
	console string // what Linux calls its first serial port
}

// machines are the computers, by Go's name of their architecture.
var machines = map[string]machine{
	// cx16=off: CMPXCHG16B of qemu 7.2 damages the flags, of which Linux 6.12,
	// whose memory allocator uses it, dies sooner or later.
	"amd64": {
		qemu: "qemu-system-x86_64", debian: "qemu-system-x86", console: "ttyS0",
		args: []string{"-machine", "q35,accel=tcg", "-cpu", "max,cx16=off"},
	},
	// The memory of PCI has to lie where 32 bits reach it.
	"arm": {
		qemu: "qemu-system-arm", debian: "qemu-system-arm", console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg,highmem=off", "-cpu", "cortex-a15"},
	},
	"arm64": {
		qemu: "qemu-system-aarch64", debian: "qemu-system-arm", console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg", "-cpu", "cortex-a57"},
	},
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
		// exit. edd=off spares a PC the search for disks.
		"-append", "quiet panic=-1 edd=off console="+m.console)
	for i := range nics {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, 3+i),
			// Without a firmware: nothing is booted from it.
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=02:74:77:67:00:%02x,romfile=", i, i))
	}
	return args
}
