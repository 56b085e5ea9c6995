// Package keep makes the kernel have the devices, addresses, forwarding entries,
// neighbours and routes that a State lists, and puts back what other programs
// remove or change.
//
// A State is plain values, made by the backends without a look at the kernel. A
// Keeper compares it with what the kernel has and writes what differs, so a
// restart that changes nothing writes nothing:
//
//	State ──► compare ──► devices, addresses        written in this order
//	            ▲         FDB entries
//	            │         neighbours
//	 netlink ───┘         routes
//	 notifications        routes, FDB entries, neighbours, devices no longer wanted
//
// The order is why a packet never finds a route to a peer that the device does
// not know: an object is written only once those it needs are there. Removal goes
// the other way round, but for FDB entries, which go before their neighbours,
// since the neighbours are what tells a later run whose entries they are.
//
// All but TUN devices outlives the process. What an earlier run made, of twill or
// of stock flannel, is recognized by its form:
//
//   - A device is one by its name and kind ([Config.Owned]) if it has an address
//     in the networks.
//   - An address of a kept device is one if it is a single one (/32, /128) inside
//     the networks.
//   - A neighbour of a kept device is one if it is permanent and its address is
//     that of a subnet: inside the networks, without host bits.
//   - An FDB entry of a kept device is one if it is permanent and its MAC is, or
//     was since the start, that of such a neighbour.
//   - A route through a kept device is one if its gateway is the address of its
//     destination; a blackhole is one by its metric.
//   - Plain routes look like anybody's. They are listed in a file ([Config.Record]),
//     which also lists the networks of earlier runs: after a change of the network
//     what was made for the old one is recognized in the same way, and goes.
//
// All else belongs to others and stays, but for a route to the same subnet in the
// same place, which stock flannel replaces too. A route that has the mark Yield
// does not replace any.
package keep
