// Package bench is the laboratory: it builds two hosts with a pod each for
// every path that packets can take between them, and puts loads on the paths in
// turn. Package report evaluates and presents the results.
//
//	wire        how frames get from host to host
//	path        what carries packets between the pods
//	load        what the pods do: streams, datagrams, requests, echoes
//	connection  an established path, with its two ends
//	round       every load once on every path; rounds are repeated, so that
//	            other activity on the machine affects all paths alike
//
// Each path has hosts, a wire and pods of its own. All of them exist throughout;
// only one is under load at a time. Traffic comes from this process, through
// sockets opened inside the pods; twilld and the other daemons run as separate
// processes inside the hosts.
//
// CPU time is that of the whole machine while the load runs, generator and
// kernel included, because packet work in the kernel is not charged to any process.
// Absolute figures are therefore specific to this machine and this generator; the
// meaningful results are ratios between paths of one run.
package bench
