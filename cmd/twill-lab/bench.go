package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/twillnet/twill/bench"
	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/command"
)

const aboutBench = `Runs loads on several paths between two pods, in several rounds, and prints
medians, spread and ratios to kernel VXLAN, and which marks were reached.
Everything runs in network namespaces of this machine, which should be idle.
Needs root. Ctrl-C stops early; rounds that are finished by then are kept.`

// quick is what --quick means for flags that are not given.
var quick = benchFlags{
	paths: "twill,floor,vxlan,host-gw,flannel-udp", loads: "tcp1,tcp4,udp64,rr,rr-load", wires: "super,mtu",
	rounds: 3, minutes: 2.5,
}

// benchFlags holds the flags of twill-lab bench.
type benchFlags struct {
	quick            bool
	paths, wires     string
	loads            string // empty: all but those that are independent of path and wire
	mtu, rounds      int
	seconds, minutes float64 // seconds 0: minutes applies
	out, page        string
	micro, from      string
	binaries         bench.Binaries
}

func (f *benchFlags) register(fs *flag.FlagSet) {
	fs.BoolVar(&f.quick, "quick", false, fmt.Sprintf("under three minutes: --paths=%s --loads=%s --wire=%s --rounds=%d --minutes=%g",
		quick.paths, quick.loads, quick.wires, quick.rounds, quick.minutes))
	fs.StringVar(&f.paths, "paths", bench.AllPaths(), "`NAMES` of the paths")
	fs.StringVar(&f.loads, "loads", "", "`NAMES` of the loads, for every path and wire, of: "+bench.AllLoads()+
		"; by default, those that do not depend on a path or a wire are left out")
	fs.Func("wire", "`NAMES` of the wires; may be repeated (default "+bench.AllWires()+")", func(names string) error {
		f.wires = strings.TrimPrefix(f.wires+","+names, ",")
		return nil
	})
	fs.IntVar(&f.mtu, "mtu", 1500, "`BYTES`: MTU of the wires")
	fs.IntVar(&f.rounds, "rounds", 5, "`N`: number of runs of every load on every path")
	fs.Float64Var(&f.minutes, "minutes", 25, "`M`: time limit for everything; runs last as long as that allows, 0.4 to 5 s")
	fs.Float64Var(&f.seconds, "seconds", 0, "`S`: duration of each run, regardless of --minutes")
	fs.StringVar(&f.out, "out", "", "`DIR` to write report.json, report.md and plots (SVG, PNG) into")
	fs.StringVar(&f.page, "page", "", "Markdown `FILE` whose figures are replaced with this run's, with the plots of --out")
	fs.StringVar(&f.micro, "micro", "", "`FILE` with the output of go test -bench, to include in the report")
	fs.StringVar(&f.from, "from", "", "`FILE`: show this report.json again and measure nothing")
	fs.StringVar(&f.binaries.Twilld, "twilld", f.binaries.Twilld, "`PATH` of twilld")
	fs.StringVar(&f.binaries.Base, "base-twilld", "", "`PATH` of another build of twilld to compare twill with, both measured in the same rounds")
	fs.Func("base-flags", "space-separated `FLAGS`: also measure a twilld with these flags, of --base-twilld or of the same build", func(flags string) error {
		f.binaries.BaseFlags = strings.Fields(flags)
		return nil
	})
	fs.StringVar(&f.binaries.FlannelUDP, "flannel-udp", f.binaries.FlannelUDP,
		"`PATH` of stock flannel's udp backend; other peers are beside it")
}

// preset applies the values of --quick and the default of --wire to flags that
// the command line does not set.
func (f *benchFlags) preset(fs *flag.FlagSet) {
	given := make(map[string]bool)
	fs.Visit(func(g *flag.Flag) { given[g.Name] = true })
	if f.quick {
		if !given["paths"] {
			f.paths = quick.paths
		}
		if !given["loads"] {
			f.loads = quick.loads
		}
		if !given["wire"] {
			f.wires = quick.wires
		}
		if !given["rounds"] {
			f.rounds = quick.rounds
		}
		if !given["minutes"] {
			f.minutes = quick.minutes
		}
	}
	if f.wires == "" {
		f.wires = bench.AllWires()
	}
}

// compares reports whether another twilld is measured beside twill.
func (f *benchFlags) compares() bool { return f.binaries.Base != "" || len(f.binaries.BaseFlags) > 0 }

// options converts the flags to the options of package bench.
func (f *benchFlags) options(c *command.Call) (bench.Options, error) {
	opts := bench.Options{MTU: f.mtu, Rounds: f.rounds, Binaries: f.binaries}
	var errs [3]error
	opts.Paths, errs[0] = bench.ParsePaths(f.paths)
	if f.compares() {
		opts.Paths = append(opts.Paths, bench.BasePath)
	}
	if f.loads != "" {
		opts.Loads, errs[1] = bench.ParseLoads(f.loads)
	}
	opts.Wires, errs[2] = bench.ParseWires(f.wires)
	for _, err := range errs {
		if err != nil {
			return opts, c.Usagef("%v", err)
		}
	}
	switch {
	case f.rounds < 1:
		return opts, c.Usagef("want at least 1 round")
	case f.minutes <= 0 || f.seconds != 0 && f.seconds < 0.1:
		return opts, c.Usagef("want at least 0.1 --seconds and more than 0 --minutes")
	case f.page != "" && f.out == "":
		return opts, c.Usagef("--page needs --out, where the plots are")
	}
	if f.seconds != 0 {
		opts.Duration = time.Duration(f.seconds * float64(time.Second))
	} else {
		opts.Fit(time.Duration(f.minutes * float64(time.Minute)))
	}
	return opts, nil
}

func runBench(ctx context.Context, c *command.Call) error {
	var f benchFlags
	var err error
	if f.binaries, err = bench.DefaultBinaries(); err != nil {
		return err
	}
	f.register(c.FlagSet)
	if help, err := c.ParseFlags(aboutBench); help || err != nil {
		return err
	}
	f.preset(c.FlagSet)
	opts, err := f.options(c)
	if err != nil {
		return err
	}
	var micro []report.Micro // first, so that a bad file does not cost 25 minutes
	if f.micro != "" {
		if micro, err = readMicro(f.micro); err != nil {
			return err
		}
	}
	var r *report.Report
	if f.from != "" {
		r, err = report.ReadJSON(f.from)
	} else {
		r, err = bench.Measure(ctx, opts, c.Stderr)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("interrupted; nothing is left behind, and the finished rounds are reported (%w)", err)
	}
	if r == nil {
		return err
	}
	if f.micro != "" {
		r.Micro = micro
	}
	return errors.Join(err, f.show(r, c.Stdout))
}

// show writes the report to each place that the flags name.
func (f *benchFlags) show(r *report.Report, stdout io.Writer) error {
	var err error
	if f.compares() {
		err = r.WriteComparison(stdout)
	} else {
		_, err = io.WriteString(stdout, r.Markdown(""))
	}
	if f.out != "" {
		err = errors.Join(err, r.WriteFiles(f.out))
	}
	if f.page != "" {
		err = errors.Join(err, r.UpdatePage(f.page, f.out))
	}
	return err
}

func readMicro(path string) ([]report.Micro, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	results, err := report.ParseMicro(strings.NewReader(string(text)))
	if err == nil && len(results) == 0 {
		err = errors.New("no results of Go benchmarks")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return results, nil
}
