// Command twill is the operator's side of twilld: it asks a running daemon, and
// it runs demonstrations and measurements of the data plane.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/status"
)

// command is a subcommand. run gets the arguments after its name; a
// usageError makes the exit code 2, any other error 1.
type command struct {
	name    string
	summary string // for twill --help
	run     func(ctx context.Context, args []string, stdout, stderr io.Writer) error
}

// commands are all subcommands, in the order of the help text.
var commands = []command{
	{"status", "what the twilld on this node does: engine, offloads, peers, drops", runStatus},
	{"doctor", "what keeps this node's pods from talking to others, and the command that mends it", runDoctor},
	{"leases", "which node has which pod subnet, until when, and the traffic with it", runLeases},
	{"config", "get the network config from etcd, or set another after checking it", runConfig},
	{"reserve", "keep a pod subnet for one node for good, or from all", runReserve},
	{"release", "end a reservation", runRelease},
	{"docker-opts", "write the options by which Docker uses this node's pod subnet", runDockerOpts},
	{"demo", "two hosts with pods in network namespaces: twill beside kernel VXLAN, in a minute", runDemo},
	{"lab", "two hosts with pods that last, to play with: up, status, exec, down", runLab},
	{"bench", "measure twill against other ways between pods", runBench},
	{"version", "print the version", runVersion},
}

// usageError is a command line that cannot be followed.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	// With the first signal the handler goes: the second one ends twill at
	// once, also if cleaning up hangs.
	context.AfterFunc(ctx, stop)

	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	var usage *usageError
	switch {
	case err == nil:
		return
	case errors.As(err, &usage):
		fmt.Fprintln(os.Stderr, "twill:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "twill:", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return &usageError{"which command? " + names() + "; twill --help says more"}
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		return help(stdout)
	case "-version", "--version":
		return runVersion(ctx, nil, stdout, stderr)
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return &usageError{fmt.Sprintf("unknown command %q; there are %s", args[0], names())}
	}
	return commands[i].run(ctx, args[1:], stdout, stderr)
}

func names() string {
	var s []string
	for _, c := range commands {
		s = append(s, c.name)
	}
	return strings.Join(s, ", ")
}

func help(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(t, "twill looks at the twilld that runs on this node, and shows and measures the\n"+
		"data plane in network namespaces of its own.\n\nUsage: twill COMMAND [flags]\n\n")
	for _, c := range commands {
		fmt.Fprintf(t, "  %s\t%s\n", c.name, c.summary)
	}
	fmt.Fprint(t, "\ntwill COMMAND --help tells a command's flags. The daemon has its own: twilld --help.\n")
	return t.Flush()
}

func runVersion(_ context.Context, args []string, stdout, _ io.Writer) error {
	if len(args) > 0 {
		return &usageError{fmt.Sprintf("version: unexpected argument %q", args[0])}
	}
	_, err := fmt.Fprintln(stdout, "twill", status.Version())
	return err
}

// parseFlags parses the flags of a subcommand that takes no other arguments.
// It returns done if only the help text was asked for, which it has written.
func parseFlags(fs *flag.FlagSet, about string, args []string, stdout io.Writer) (done bool, err error) {
	fs.SetOutput(io.Discard)
	err = fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "Usage: twill %s [flags]\n\n%s\n\n", fs.Name(), about)
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return true, nil
	case err != nil:
		return false, &usageError{fs.Name() + ": " + err.Error()}
	case fs.NArg() > 0:
		return false, &usageError{fmt.Sprintf("%s: unexpected argument %q", fs.Name(), fs.Arg(0))}
	}
	return false, nil
}
