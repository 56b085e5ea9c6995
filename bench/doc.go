// Package bench is the laboratory: it builds two hosts with a pod each for
// every path that packets can take between them, and puts loads on the paths in
// turn. What came of it is package report's.
//
//	wire        how frames get from host to host
//	path        what carries a packet between the pods
//	load        what the pods do: streams, datagrams, requests, echoes
//	connection  a path that stands, with its two ends
//	round       every load once on every path; rounds are repeated, so that
//	            whatever else the machine does falls on all paths alike
//
// Each path has hosts, wire and pods of its own, and all stand throughout;
// only one is under load at a time. Traffic comes from this process, through
// sockets opened inside the pods; twilld and its like run as processes of
// their own inside the hosts.
//
// CPU time is that of the whole machine while the load runs, generator and
// kernel included, because packet work in the kernel is on nobody's account.
// So absolute figures are those of this machine and this generator, and ratios
// between paths of one run are what means something.
package bench
