package main

import (
	"context"
	"flag"
	"io"

	"github.com/twillnet/twill/bench"
)

const aboutDemo = `Makes two hosts with a pod each in network namespaces, starts a real twilld on
both, pings at full MTU, moves TCP and UDP, does the same over kernel VXLAN and
prints one table. Takes about a minute, needs root, and leaves nothing behind.`

func runDemo(ctx context.Context, args []string, stdout, _ io.Writer) error {
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	fs.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	if done, err := parseFlags(fs, aboutDemo, args, stdout); done || err != nil {
		return err
	}
	return bench.Demo(ctx, bin, stdout)
}
