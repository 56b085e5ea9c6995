package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/status"
)

const labUsage = `Usage: twill lab up [--wire super|mtu] [--twilld PATH]
       twill lab status
       twill lab exec a|b|pod-a|pod-b COMMAND [ARG...]
       twill lab down

Two hosts with a pod and a twilld each, in the network namespaces twill-a,
twill-b, twill-pod-a and twill-pod-b, until "twill lab down". Needs root.
`

const aboutLabUp = `Makes the lab and prints what can be done with it.`

func runLab(ctx context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) == 0 {
		return &usageError{"lab: up, status, exec or down? twill lab --help says more"}
	}
	rest := args[1:]
	switch args[0] {
	case "-h", "-help", "--help", "help":
		_, err := io.WriteString(stdout, labUsage)
		return err
	case "up":
		return labUp(ctx, rest, stdout)
	case "exec":
		if len(rest) < 2 {
			return &usageError{"lab exec: want a place (a, b, pod-a, pod-b) and a command"}
		}
		return bench.LabExec(rest[0], rest[1:])
	}
	if len(rest) > 0 {
		return &usageError{fmt.Sprintf("lab %s: unexpected argument %q", args[0], rest[0])}
	}
	switch args[0] {
	case "status":
		return labStatus(ctx, stdout)
	case "down":
		return bench.LabDown()
	}
	return &usageError{fmt.Sprintf("lab: unknown command %q; there are up, status, exec and down", args[0])}
}

func labUp(ctx context.Context, args []string, stdout io.Writer) error {
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	fs := flag.NewFlagSet("lab up", flag.ContinueOnError)
	wire := fs.String("wire", string(netlab.Super), "`KIND` of wire: super (large packets cross whole) or mtu (as a plain network card)")
	fs.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	if done, err := parseFlags(fs, aboutLabUp, args, stdout); done || err != nil {
		return err
	}
	kind, err := netlab.ParseWire(*wire)
	if err != nil {
		return &usageError{"lab up: " + err.Error()}
	}
	lab, err := bench.LabUp(ctx, kind, bin)
	if err != nil {
		return err
	}
	return lab.WriteGuide(stdout)
}

// labStatus prints what both twillds say.
func labStatus(ctx context.Context, stdout io.Writer) error {
	lab, err := bench.LoadLab()
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range lab.Hosts {
		fmt.Fprintf(stdout, "== host %s, twilld is process %d, log %s\n", h.Name, h.PID, h.Log)
		d, err := status.Fetch(ctx, h.Socket)
		if err == nil {
			err = d.WritePage(stdout)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("host %s: %w", h.Name, err))
		}
	}
	return errors.Join(errs...)
}
