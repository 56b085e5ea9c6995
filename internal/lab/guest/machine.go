package guest

import "fmt"

// machine is a computer that qemu emulates.
type machine struct {
	qemu    string // the program
	debian  string // its package
	args    []string
	console string // Linux's name of its first serial port
}

// machines are the supported machines, by Go's name of their architecture.
var machines = map[string]machine{
	// cx16=off: CMPXCHG16B of qemu 7.2 corrupts the flags, which sooner or later
	// crashes Linux 6.12, whose memory allocator uses it.
	"amd64": {
		qemu: "qemu-system-x86_64", debian: "qemu-system-x86", console: "ttyS0",
		args: []string{"-machine", "q35,accel=tcg", "-cpu", "max,cx16=off"},
	},
	// PCI memory has to be within the 32-bit address range.
	"arm": {
		qemu: "qemu-system-arm", debian: "qemu-system-arm", console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg,highmem=off", "-cpu", "cortex-a15"},
	},
	"arm64": {
		qemu: "qemu-system-aarch64", debian: "qemu-system-arm", console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg", "-cpu", "cortex-a57"},
	},
}

// Memory of a guest, in MiB. It includes the files of the initramfs.
const Memory = 512

// command returns the arguments of qemu for a machine with one CPU. The descriptors of
// the network cards are 3 and up.
func (m machine) command(kernel, initramfs string, nics int) []string {
	args := append([]string(nil), m.args...)
	args = append(args,
		"-m", fmt.Sprint(Memory), "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs,
		// On a panic the kernel restarts at once, which -no-reboot turns into an
		// exit. edd=off saves a PC the search for disks. no_timer_check skips the check
		// that timer interrupts arrive in time, which fails on a busy machine. A tmpfs
		// would be limited to half of the memory.
		"-append", "quiet panic=-1 edd=off no_timer_check rootfstype=ramfs console="+m.console)
	for i := range nics {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, 3+i),
			// No firmware: nothing is booted from the card. The default ring of 256 buffers
			// holds six super-packets and runs empty where the machine is busy.
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=02:74:77:67:00:%02x,romfile=,rx_queue_size=1024", i, i))
	}
	return args
}
