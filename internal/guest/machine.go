package guest

import "fmt"

// machine is a computer that qemu emulates.
type machine struct {
	qemu    string   // the program
	debian  string   // its package
	args    []string // the machine with its serial port, which is stdin and stdout
	console string   // what Linux calls that port
	nic     string   // the kind of network card
}

// pciNIC has no firmware of its own: nothing is booted from it.
const pciNIC = "virtio-net-pci,romfile="

// machines are the computers, by Go's name of their architecture.
var machines = map[string]machine{
	"amd64": {
		qemu: "qemu-system-x86_64", debian: "qemu-system-x86", nic: pciNIC, console: "ttyS0",
		args: []string{"-machine", "q35,accel=tcg", "-cpu", "max", "-serial", "stdio"},
	},
	// The memory of PCI has to lie where 32 bits reach it.
	"arm": {
		qemu: "qemu-system-arm", debian: "qemu-system-arm", nic: pciNIC, console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg,highmem=off", "-cpu", "cortex-a15", "-serial", "stdio"},
	},
	"arm64": {
		qemu: "qemu-system-aarch64", debian: "qemu-system-arm", nic: pciNIC, console: "ttyAMA0",
		args: []string{"-machine", "virt,accel=tcg", "-cpu", "cortex-a57", "-serial", "stdio"},
	},
	// Big-endian.
	"s390x": {
		qemu: "qemu-system-s390x", debian: "qemu-system-misc", nic: "virtio-net-ccw", console: "ttysclp0",
		args: []string{
			"-machine", "s390-ccw-virtio,accel=tcg", "-cpu", "max",
			"-chardev", "stdio,id=console", "-device", "sclpconsole,chardev=console",
		},
	},
}

// memory of a guest, in MiB. The initramfs stays in it.
const memory = 512

// command returns the arguments of qemu. The descriptors of the network cards
// are 3 and those after it.
func (m machine) command(kernel, initramfs string, nics int) []string {
	args := append([]string(nil), m.args...)
	args = append(args,
		"-m", fmt.Sprint(memory), "-nodefaults", "-nographic", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs,
		// A panic is the end: it restarts at once, which -no-reboot makes an
		// exit. edd=off spares a PC the search for disks.
		"-append", "quiet panic=-1 edd=off console="+m.console)
	for i := range nics {
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, 3+i),
			"-device", fmt.Sprintf("%s,netdev=net%d,mac=02:74:77:67:00:%02x", m.nic, i, i))
	}
	return args
}
