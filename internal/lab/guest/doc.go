// Package guest boots another Linux kernel in qemu and uses it in place of
// a host of internal/lab/netlab, to test behaviour on an older kernel, or on one
// without some module. It needs root, qemu and what "make guest" fetches, but not KVM:
// every instruction is emulated.
//
// The guest takes over the addresses of the host, whose namespace is left with
// two bridges. The host's pods remain namespaces of this machine,
// with the guest as their gateway:
//
//	  guest (qemu)                     namespace of the host
//	┌────────────────────┐           ┌────────────────────────┐
//	│ eth0 172.31.9.13 ──┼── guest0 ─┼─ underlay ─── eth0 ────┼── wire
//	│ eth1 10.5.3.1    ──┼── guest1 ─┼─ cni0 ────── veth0 ────┼── pod-c
//	└────────────────────┘    taps   └────────────────────────┘
//
// Programs in the guest come from an initramfs that is built for it: busybox,
// the requested kernel modules and their dependencies, the files of the
// test, and init.sh, which reads commands from the serial console. There is no
// disk, nothing is shared with this machine, and nothing of the guest remains
// when it ends.
package guest
