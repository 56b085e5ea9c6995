package main

import (
	"cmp"
	"context"
	"io"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/lease"
)

const aboutDoctor = `Finds what keeps the pods of this node from reaching those of other nodes: kernel,
TUN device, sysctls, firewall, the path to each peer (pings that must not be
fragmented, and pings through the tunnel), leases, clock. For each fault it prints
the command that repairs it. It changes nothing. Run it as root.

Exit code: 0 if nothing is bad, 1 if something is.`

// defaultSubnetFile is the default path of flannel's subnet file.
const defaultSubnetFile = "/run/flannel/subnet.env"

// doctorCommand is a subcommand that examines this node.
type doctorCommand struct {
	*storeCommand
	subnetFile       string
	forward, orderly bool
}

// newDoctorCommand defines the flags common to all of them.
func newDoctorCommand(call *command.Call) *doctorCommand {
	c := &doctorCommand{storeCommand: newStoreCommand(call)}
	c.StringVar(&c.file, "lease-file", "", "`FILE` with the leases, instead of etcd (default: the running twilld's)")
	c.StringVar(&c.subnetFile, "subnet-file", "", "`FILE` that twilld writes for CNI plugins (default: the running twilld's, or "+defaultSubnetFile+")")
	c.BoolVar(&c.forward, "iptables-forward-rules", true, "twilld's setting, if no twilld is running")
	c.BoolVar(&c.orderly, "ip-masq-fully-random-disable", false, "twilld's setting, if no twilld is running")
	return c
}

// subnetPath returns the path of the subnet file.
func (c *doctorCommand) subnetPath() string {
	return cmp.Or(c.subnetFile, c.settings().SubnetFile, defaultSubnetFile)
}

// node returns what is known about this node.
func (c *doctorCommand) node(ctx context.Context) doctor.Node {
	n := doctor.Node{Forward: c.forward, RandomFully: !c.orderly, Daemon: c.daemon, DaemonErr: c.daemonErr}
	n.Env, n.EnvErr = lease.ReadSubnetEnv(c.subnetPath())
	if n.Config, n.StoreErr = c.config(ctx); n.StoreErr == nil {
		n.Leases, n.StoreErr = c.leases(ctx)
	}
	return n
}

func runDoctor(ctx context.Context, call *command.Call) error {
	c := newDoctorCommand(call)
	c.Stderr = io.Discard // the findings cover the store's warnings
	asJSON := c.Bool("json", false, "print JSON instead of lines")
	if _, help, err := c.parse(ctx, aboutDoctor, ""); help || err != nil {
		return err
	}
	return report(call, doctor.Examine(ctx, c.node(ctx)), *asJSON)
}
