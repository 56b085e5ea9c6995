// Package tun opens the TUN device and moves packets between its queues and
// the memory of the caller.
//
// There are two kinds of device behind one Queue. The offload device puts a
// virtio-net header before each packet, so that the kernel delivers and accepts
// super-packets of up to 64 KiB and leaves checksums and segmentation to the
// reader; it can have many queues. The plain device, opened through
// songgao/water, carries one packet per read or write and has one queue; it
// serves kernels and sandboxes that refuse the rest.
//
// The kernel removes a device, with its addresses and routes, when the last queue
// is closed or the process dies, unless it was made persistent.
package tun
