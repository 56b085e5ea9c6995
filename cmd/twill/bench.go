package main

import (
	"context"
	"errors"
	"flag"
	"io"
	"time"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/internal/netlab"
)

const aboutBench = `Puts loads on several ways between two pods, round after round, and prints
medians and ratios to kernel VXLAN. Everything stands in network namespaces of
this machine, which should be quiet. Needs root. Ctrl-C ends it early; what was
measured by then is printed.`

func runBench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	bin, err := bench.DefaultBinaries()
	if err != nil {
		return err
	}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	paths := fs.String("paths", bench.AllPaths(), "`NAMES` of the paths")
	loads := fs.String("loads", bench.AllLoads(), "`NAMES` of the loads")
	wire := fs.String("wire", string(netlab.Super), "`KIND` of wire: super (large packets cross whole) or mtu (as a plain network card)")
	mtu := fs.Int("mtu", 1500, "`BYTES`: MTU of the wire")
	rounds := fs.Int("rounds", 5, "`N`: how often every load runs on every path")
	seconds := fs.Float64("seconds", 3, "`S`: how long each run takes")
	json := fs.String("json", "", "`FILE` to write all runs to")
	fs.StringVar(&bin.Twilld, "twilld", bin.Twilld, "`PATH` of twilld")
	fs.StringVar(&bin.FlannelUDP, "flannel-udp", bin.FlannelUDP, "`PATH` of stock flannel's udp backend")
	if done, err := parseFlags(fs, aboutBench, args, stdout); done || err != nil {
		return err
	}
	if *rounds < 1 || *seconds < 0.1 {
		return &usageError{"bench: want at least 1 round and 0.1 seconds"}
	}
	opts := bench.Options{
		MTU: *mtu, Rounds: *rounds, Binaries: bin,
		Duration: time.Duration(*seconds * float64(time.Second)),
	}
	var errs [3]error
	opts.Paths, errs[0] = bench.ParsePaths(*paths)
	opts.Loads, errs[1] = bench.ParseLoads(*loads)
	opts.Wire, errs[2] = netlab.ParseWire(*wire)
	for _, err := range errs {
		if err != nil {
			return &usageError{"bench: " + err.Error()}
		}
	}
	report, err := bench.Measure(ctx, opts, stderr)
	if report == nil {
		return err
	}
	err = errors.Join(err, report.WriteTable(stdout))
	if *json != "" {
		err = errors.Join(err, report.WriteJSON(*json))
	}
	return err
}
