package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/remote"
)

// aboutVia ends the help text of the commands that run twill on other nodes.
const aboutVia = `

--via is the command that runs twill as root on another node; {node} stands for the node's
public address. It is run without a shell. Examples:

  --via 'ssh root@{node} twill'
  --via 'ssh {node} sudo twill'
  --via kubectl

kubectl stands for 'kubectl exec -i --namespace={namespace} {pod}
--container=kube-flannel -- twill', in the pod of the DaemonSet on each node.`

// fleetCommand is a subcommand that runs twill on other nodes.
type fleetCommand struct {
	*doctorCommand
	viaText string
	via     remote.Via
	nodes   string
}

// newFleetCommand defines the flags common to all of them.
func newFleetCommand(call *command.Call) *fleetCommand {
	c := &fleetCommand{doctorCommand: newDoctorCommand(call)}
	c.StringVar(&c.viaText, "via", "", "`COMMAND` that runs twill on a node; {node} stands for its address")
	c.StringVar(&c.nodes, "nodes", "", "only these `NODES`: comma-separated public addresses, or prefixes that contain them (default: all that have leases)")
	return c
}

// readVia reads --via, which may be missing.
func (c *fleetCommand) readVia() error {
	if c.viaText == "" {
		return nil
	}
	var err error
	if c.via, err = remote.Parse(c.viaText); err != nil {
		return c.Usagef("--via: %v", err)
	}
	return nil
}

// member is a node of the network.
type member struct {
	remote.Node
	other   netip.Addr // public address of the other family; invalid if it has none
	subnets []netip.Prefix
	own     bool // this one
}

// mostMembers bounds the nodes of a command: each takes a process on this host until the
// end.
const mostMembers = 128

// members returns the nodes that --nodes selects, sorted by address, with their pods if
// --via needs them.
func (c *fleetCommand) members(ctx context.Context) ([]member, error) {
	all, err := c.allMembers(ctx)
	if err != nil {
		return nil, err
	}
	if all, err = selected(all, c.nodes); err != nil {
		return nil, c.Usagef("--nodes: %v", err)
	}
	slices.SortFunc(all, func(a, b member) int { return a.Addr.Compare(b.Addr) })
	switch {
	case len(all) == 0:
		return nil, errors.New("no node has a lease")
	case len(all) > mostMembers:
		return nil, fmt.Errorf("there are %d nodes, and at most %d can be used at the same time; choose some with --nodes", len(all), mostMembers)
	case !c.via.NeedsPods():
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	k, err := newKubectl(c.kube.Source)
	if err != nil {
		return nil, err
	}
	c.via = c.via.InCluster(k.access())
	pods, err := k.pods(ctx)
	for i := range all {
		all[i].Pod = pods[all[i].Addr]
	}
	return all, err
}

// allMembers returns the nodes that have leases or, if the store does not answer, those
// that the running twilld knows.
func (c *fleetCommand) allMembers(ctx context.Context) (all []member, err error) {
	leases, err := c.leases(ctx)
	if err != nil && (c.daemon == nil || c.daemon.Lease == nil) {
		return nil, err
	}
	var own netip.Addr
	if c.daemon != nil && c.daemon.Lease != nil {
		own = cmp.Or(c.daemon.Lease.PublicIP, c.daemon.Lease.PublicIPv6)
	}
	if err == nil {
		for _, l := range leases {
			if a := cmp.Or(l.PublicIP, l.PublicIPv6); a.IsValid() { // otherwise it is reserved for no node
				all = append(all, member{Node: remote.Node{Addr: a}, other: l.PublicIPv6, subnets: l.Subnets(), own: a == own})
			}
		}
		return all, nil
	}
	fmt.Fprintf(c.Stderr, "%s: the store does not answer; using the nodes that this node's twilld knows: %v\n", c.Name(), err)
	l := c.daemon.Lease
	all = append(all, member{Node: remote.Node{Addr: own}, other: l.PublicIPv6, subnets: l.Subnets(), own: true})
	if c.daemon.Dataplane != nil {
		for _, p := range c.daemon.Dataplane.Peers {
			if i := slices.IndexFunc(all, func(m member) bool { return m.Addr == p.PublicIP }); i >= 0 {
				all[i].subnets = append(all[i].subnets, p.Subnets...) // its other family, by another backend
			} else {
				all = append(all, member{Node: remote.Node{Addr: p.PublicIP}, subnets: p.Subnets})
			}
		}
	}
	return all, nil
}

// selected returns the members that a list of addresses and prefixes selects; all of them
// if it is empty. Each item must select at least one.
func selected(all []member, list string) ([]member, error) {
	if list == "" {
		return all, nil
	}
	chosen := make(map[netip.Addr]bool)
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		p, err := netip.ParsePrefix(item)
		if err != nil {
			a, err := netip.ParseAddr(item)
			if err != nil {
				return nil, fmt.Errorf("%q is neither an address nor a prefix", item)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		found := false
		for _, m := range all {
			if p.Contains(m.Addr) {
				chosen[m.Addr], found = true, true
			}
		}
		if !found {
			return nil, fmt.Errorf("no node with a lease is at %s; twill leases lists them", item)
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(m member) bool { return !chosen[m.Addr] }), nil
}

// running is twill on another node, with its standard input and output.
type running struct {
	in   io.WriteCloser
	out  io.Reader // ends when the command has ended
	wait func() error
}

// start runs twill on a node until ctx is done. wait returns how it ended, with what it
// said last on standard error.
func (c *fleetCommand) start(ctx context.Context, m member, args ...string) (*running, error) {
	cmd, err := c.via.Command(ctx, m.Node, args...)
	if err != nil {
		return nil, err
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, written := io.Pipe()
	var complaints remote.Complaints
	cmd.Stdout, cmd.Stderr = written, &complaints
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = fmt.Errorf("%w; --via must begin with a program", err)
		}
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		err := complaints.Explain(cmd.Wait())
		_ = written.Close()
		ended <- err
	}()
	return &running{in, out, func() error {
		_ = out.Close() // nobody reads on, so that it cannot block
		return <-ended
	}}, nil
}
