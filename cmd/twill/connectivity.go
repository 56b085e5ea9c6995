package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/connectivity"
	"github.com/twillnet/twill/internal/doctor"
)

const aboutConnectivity = `Tests the network from every node to every other, for each family of addresses: pings,
pings as large as pods' packets may be, which must not be fragmented, a TCP connection
that carries 64 KiB each way, and UDP datagrams of full size. It prints a matrix, what
fails and why, how the nodes' versions, configs and tables differ, and what doctor finds
on each node.

The tests from each node are run by twill on that node, so nothing but twilld has to run
there. During the test, twill listens on an address in the node's pod subnet, and echoes
only messages with a random number that belongs to this test. Without --via, only the paths
from this node are tested, with pings. At most 150 kB are sent per path. Run it as root.

Exit code: 0 if everything that was tried passed and doctor finds nothing bad, 1 if not,
2 for any other error.`

// errNotConnected makes the exit code 1. What is wrong has been printed.
var errNotConnected = errors.New("connectivity: something failed, see above")

// connectivityCommand is the subcommand.
type connectivityCommand struct {
	*fleetCommand
	wait     time.Duration
	parallel int
	port     int
	junit    string
	asJSON   bool
	part     bool
}

func runConnectivity(ctx context.Context, call *command.Call) error {
	c := &connectivityCommand{fleetCommand: newFleetCommand(call)}
	c.DurationVar(&c.wait, "W", 3*time.Second, "`TIME` to wait for an answer before it counts as lost")
	c.IntVar(&c.parallel, "parallel", 4, "`NUMBER` of nodes that test concurrently")
	c.IntVar(&c.port, "port", 0, "TCP and UDP `PORT` to listen on, if the nodes' firewalls allow only some (default: any)")
	c.StringVar(&c.junit, "junit", "", "write the results to `FILE` as JUnit XML")
	c.BoolVar(&c.asJSON, "json", false, "print JSON instead of a page")
	c.BoolVar(&c.part, "part", false, "test from this node on requests from standard input; used by twill itself through --via")
	_, help, err := c.parse(ctx, aboutConnectivity+aboutVia, "")
	switch {
	case help || err != nil:
		return err
	case c.wait <= 0 || c.wait > time.Minute:
		return call.Usagef("-W %s: want more than 0 and at most 1m", c.wait)
	case c.parallel < 1:
		return call.Usagef("--parallel %d: want at least 1", c.parallel)
	case c.port < 0 || c.port > 65535:
		return call.Usagef("--port %d: want 1 to 65535, or 0 for any", c.port)
	case c.part:
		c.Stderr = io.Discard // the findings cover the store's warnings
		if err := connectivity.Serve(ctx, c.self(ctx), os.Stdin, call.Stdout); err != nil {
			return command.Fatal(err)
		}
		return nil
	}
	if err := c.readVia(); err != nil {
		return err
	}
	report, err := c.run(ctx)
	if err != nil {
		return command.Fatal(err)
	}
	if err := c.write(report); err != nil {
		return command.Fatal(err)
	}
	if !report.OK {
		return errNotConnected
	}
	return nil
}

// self returns what the part of this node knows.
func (c *connectivityCommand) self(ctx context.Context) connectivity.Node {
	return connectivity.Node{Document: c.daemon, Findings: doctor.Examine(ctx, c.node(ctx))}
}

func (c *connectivityCommand) run(ctx context.Context) (*connectivity.Report, error) {
	nodes, err := c.members(ctx)
	if err != nil {
		return nil, err
	}
	if !c.via.IsSet() && (c.daemon == nil || c.daemon.Lease == nil) {
		return nil, errors.New("no twilld with a lease runs here to test from; run this on a node, or say with --via how to reach the others")
	}
	o := connectivity.Options{Wait: c.wait, Parallel: c.parallel, Port: uint16(c.port)}
	for _, m := range nodes {
		one := connectivity.Member{Node: m.Addr, Other: m.other, Subnets: m.subnets}
		switch {
		case m.own:
			one.Start = c.startHere
		case c.via.IsSet():
			one.Start = func(ctx context.Context) (connectivity.Connection, error) {
				r, err := c.start(ctx, m, "connectivity", "--part")
				if err != nil {
					return connectivity.Connection{}, err
				}
				return connectivity.Connection{In: r.in, Out: r.out, Wait: r.wait}, nil
			}
		}
		o.Members = append(o.Members, one)
	}
	if isTerminal(c.Stderr) {
		o.Progress = func(p connectivity.Progress) { fmt.Fprintf(c.Stderr, "\r\x1b[K%s", p) }
		defer fmt.Fprint(c.Stderr, "\r\x1b[K")
	}
	return connectivity.Run(ctx, o)
}

// startHere runs the part of this node in this process.
func (c *connectivityCommand) startHere(ctx context.Context) (connectivity.Connection, error) {
	requests, in := io.Pipe()
	out, answers := io.Pipe()
	var serving sync.WaitGroup
	var err error
	serving.Go(func() {
		err = connectivity.Serve(ctx, c.self(ctx), requests, answers)
		_ = requests.Close()
		_ = answers.Close()
	})
	context.AfterFunc(ctx, func() { _ = requests.CloseWithError(io.EOF) })
	return connectivity.Connection{In: in, Out: out, Wait: func() error {
		_ = out.Close()
		serving.Wait()
		return err
	}}, nil
}

func (c *connectivityCommand) write(r *connectivity.Report) error {
	if c.junit != "" {
		f, err := os.Create(c.junit)
		if err != nil {
			return err
		}
		if err := errors.Join(r.WriteJUnit(f), f.Close()); err != nil {
			return fmt.Errorf("write %s: %w", c.junit, err)
		}
	}
	if c.asJSON {
		return writeJSON(c.Stdout, r)
	}
	err := r.WritePage(c.Stdout)
	if err == nil && !c.via.IsSet() {
		_, err = fmt.Fprintln(c.Stdout, "\nOnly the paths from this node were tested. With --via, twill also tests from the others.")
	}
	return err
}
