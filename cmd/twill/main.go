// Command twill is the operator's client for twilld: it queries the daemon on
// this node and the lease store, and writes to the store.
package main

import (
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/version"
)

var program = command.Program{
	Name:    "twill",
	About:   "twill shows what the twilld on this node does, and manages the leases in etcd.",
	More:    "The daemon's flags are listed by twilld --help.",
	Version: version.String,
	Commands: []command.Command{
		{Name: "status", Summary: "show what the twilld on this node does: engine, offloads, peers, drops", Run: runStatus},
		{Name: "doctor", Summary: "find what keeps this node's pods from reaching others, and the command that repairs it", Run: runDoctor},
		{Name: "check", Summary: "find what a host lacks before twilld starts on it, and the command that repairs it", Run: runCheck},
		{Name: "ping", Summary: "ping another node outside and inside the tunnel: time, loss, largest packet", Run: runPing},
		{Name: "trace", Summary: "follow a packet from pod to pod, in the tables and with probes: where it is lost, and why", Run: runTrace},
		{Name: "connectivity", Summary: "test the network from every node to every other: a matrix, what fails, what differs", Run: runConnectivity},
		{Name: "top", Summary: "show the current traffic of this node, by device and by peer", Run: runTop},
		{Name: "capture", Summary: "write the packets of pods to a pcapng file or to Wireshark, with peer and drop reason", Run: runCapture},
		{Name: "diag", Summary: "pack what a bug report about this node needs into one archive", Run: runDiag},
		{Name: "leases", Summary: "list which node has which pod subnet, until when, and the traffic with it", Run: runLeases},
		{Name: "config", Summary: "print the network config in etcd, or replace it after checking the new one", Run: runConfig},
		{Name: "reserve", Summary: "reserve a pod subnet permanently, for one node or from all", Run: runReserve},
		{Name: "release", Summary: "end a reservation", Run: runRelease},
		{Name: "invite", Summary: "print an invitation to the etcd in this node's twilld, for one more node", Run: runInvite},
		{Name: "join", Summary: "accept an invitation: write the certificates for another node's etcd", Run: runJoin},
		{Name: "log-level", Summary: "change the log level of the running twilld for a while", Run: runLogLevel},
		{Name: "docker-opts", Summary: "write the options that make Docker use this node's pod subnet", Run: runDockerOpts},
	},
}

func main() { program.Main() }
