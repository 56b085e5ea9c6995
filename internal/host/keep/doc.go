// Package keep makes the kernel have the devices, addresses, forwarding
// entries, neighbours and routes that a State lists, and restores those that
// other programs remove or change.
//
// A State consists of plain values, which the backends build without reading
// the kernel's state. A Keeper compares it with the kernel's state and writes
// only the differences, so a restart that changes nothing writes nothing:
//
//	State ──► compare ──► devices, addresses        written in this order
//	            ▲         FDB entries
//	            │         neighbours
//	 netlink ───┘         routes
//	 notifications        routes, FDB entries, neighbours, devices no longer wanted
//
// Because of this order a packet never finds a route to a peer that the device
// does not know: an object is written only once those that it depends on exist.
// Removal is in reverse order, except that FDB entries are removed before their
// neighbours, since a later run uses the neighbours to recognize FDB entries.
//
// Everything but TUN devices outlives the process. Objects of an earlier run,
// of twill or of stock flannel, are recognized by their form:
//
//   - A device is ours if its name and kind match ([Config.Owned]) and it has an
//     address in the networks.
//   - An address of a kept device is ours if it is a single address (/32, /128)
//     inside the networks.
//   - A neighbour of a kept device is ours if it is permanent and its address is
//     that of a subnet: inside the networks, without host bits.
//   - An FDB entry of a kept device is ours if it is permanent and its MAC is, or
//     was at some time since the start, that of such a neighbour.
//   - A route through a kept device is ours if its gateway is the address of its
//     destination, or if it has no gateway and the device is a TUN device, which an
//     earlier run may have passed on; a blackhole is ours if it has our metric.
//   - Plain routes have no such form. They are listed in a file ([Config.Record]),
//     which also lists the networks of earlier runs: after a change of the
//     network, objects for the old one are recognized in the same way and removed.
//
// Everything else belongs to others and is left alone, except that a route to
// the same subnet with the same metric is replaced, as stock flannel does. A
// route with Yield set replaces no other route.
package keep
