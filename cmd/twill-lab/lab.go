package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/status"
)

const aboutUp = `Sets up the lab: two hosts with a pod and a twilld each, in the network namespaces
twill-a, twill-b, twill-pod-a and twill-pod-b, which stay until "twill-lab down".
Prints what can be done with them.`

func runUp(ctx context.Context, c *command.Call) error {
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	wire := c.String("wire", string(netlab.Super), "`KIND` of wire: super (large packets pass unsplit) or mtu (like a plain network card)")
	c.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	if help, err := c.ParseFlags(aboutUp); help || err != nil {
		return err
	}
	kind, err := netlab.ParseWire(*wire)
	if err != nil {
		return c.Usagef("%v", err)
	}
	lab, err := bench.LabUp(ctx, kind, bin)
	if err != nil {
		return err
	}
	return lab.WriteGuide(c.Stdout)
}

func runStatus(ctx context.Context, c *command.Call) error {
	if help, err := c.ParseFlags("Prints twill status for both hosts of the lab."); help || err != nil {
		return err
	}
	lab, err := bench.LoadLab()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range lab.Hosts {
		fmt.Fprintf(c.Stdout, "== host %s, twilld is process %d, log %s\n", h.Name, h.PID, h.Log)
		d, err := status.Fetch(ctx, h.Socket)
		if err == nil {
			err = d.WritePage(c.Stdout)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("host %s: %w", h.Name, err))
		}
	}
	return errors.Join(errs...)
}

const execUsage = `Usage: twill-lab exec a|b|pod-a|pod-b COMMAND [ARG...]

Runs a command on a host of the lab or in a pod.
`

// runExec passes everything after the place on unchanged: flags belong to the
// command.
func runExec(_ context.Context, c *command.Call) error {
	switch {
	case len(c.Arguments) == 1 && slices.Contains([]string{"-h", "-help", "--help"}, c.Arguments[0]):
		_, err := fmt.Fprint(c.Stdout, execUsage)
		return err
	case len(c.Arguments) < 2:
		return c.Usagef("want a place (a, b, pod-a, pod-b) and a command")
	}
	return bench.LabExec(c.Arguments[0], c.Arguments[1:])
}

func runDown(_ context.Context, c *command.Call) error {
	if help, err := c.ParseFlags("Stops both twillds of the lab and removes its namespaces."); help || err != nil {
		return err
	}
	return bench.LabDown()
}
