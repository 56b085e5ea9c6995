// Package handover carries open descriptors from one run of the daemon to the
// next, so that packets wait in the queues of the TUN device and of the sockets
// while no process reads them, or are read without a gap.
//
// There are two ways. Under systemd the daemon leaves copies with the service
// manager ([Store]), which passes them to the next process of the unit
// ([Inherit]), whatever the first one ended of. Without it a new process asks the
// running one on its control socket ([Request]): that sends its descriptors
// ([Offer]), goes on meanwhile, and ends when the new one is ready.
package handover
