// Package handover carries open descriptors from one run of the daemon to the
// next, so that packets stay in the queues of the TUN device and of the sockets
// while no process reads them, or are read without a gap.
//
// There are two ways. Under systemd the daemon leaves copies with the service
// manager ([Store]), which passes them to the next process of the unit
// ([Inherit]), regardless of how the first one ended. Without systemd a new
// process requests them from the running one on its control socket ([Request]);
// the running process sends its descriptors ([Offer]), continues meanwhile, and
// ends when the new one is ready.
package handover
