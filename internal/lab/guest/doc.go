// Package guest boots another Linux kernel in qemu and puts it in the place of
// a host of internal/lab/netlab, for tests of what an older kernel, or one without a
// module, lacks. It needs root, qemu and what "make guest" fetches, but not KVM:
// every instruction is emulated.
//
// The guest takes over the addresses of the host, whose namespace is left with
// two bridges. The host's pods stay what they are, namespaces of this machine,
// with the guest as their gateway:
//
//	  guest (qemu)                     namespace of the host
//	┌────────────────────┐           ┌────────────────────────┐
//	│ eth0 172.31.9.13 ──┼── guest0 ─┼─ underlay ─── eth0 ────┼── wire
//	│ eth1 10.5.3.1    ──┼── guest1 ─┼─ cni0 ────── veth0 ────┼── pod-c
//	└────────────────────┘    taps   └────────────────────────┘
//
// What runs in the guest comes from an initramfs that is made for it: busybox,
// the kernel modules that were asked for and those they need, the files of the
// test, and init.sh, which takes commands from the serial console. There is no
// disk, nothing is shared with this machine, and nothing of the guest is left
// when it ends.
package guest
