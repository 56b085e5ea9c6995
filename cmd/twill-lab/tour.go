package main

import (
	"bufio"
	"context"
	"fmt"
	"os"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/internal/command"
)

const aboutTour = `Follows one packet from pod to pod, over the udp backend and over vxlan, and explains
each step with the routes, tables and bytes that it finds, between two hosts in network
namespaces with a pod and a real twilld each. Takes a few seconds, needs root, and leaves
nothing behind.`

func runTour(ctx context.Context, c *command.Call) error {
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	step := c.Bool("step", false, "wait for Enter after each step")
	c.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	if help, err := c.ParseFlags(aboutTour); help || err != nil {
		return err
	}
	pause := func() error { return nil }
	if *step {
		lines := bufio.NewReader(os.Stdin)
		pause = func() error {
			fmt.Fprint(c.Stderr, "\n(press Enter to continue) ")
			_, err := lines.ReadString('\n')
			return err
		}
	}
	return bench.Tour(ctx, bin, c.Stdout, pause)
}
