package main

import (
	"context"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/internal/command"
)

const aboutDemo = `Sets up two hosts with one pod each in network namespaces, starts a real twilld
on both, pings at full MTU, sends TCP and UDP, does the same over kernel VXLAN and
prints one table. Takes about a minute, needs root, and leaves nothing behind.`

func runDemo(ctx context.Context, c *command.Call) error {
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	c.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	if help, err := c.ParseFlags(aboutDemo); help || err != nil {
		return err
	}
	return bench.Demo(ctx, bin, c.Stdout)
}
