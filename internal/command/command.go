// Package command runs programs with subcommands: it finds the subcommand,
// prints help and version, and turns an error into an exit code.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Program is a program and its subcommands.
type Program struct {
	Name     string // the first word of its command lines
	About    string // its purpose; no newline at the end
	More     string // further references, at the end of the help text
	Version  func() string
	Commands []Command // in the order of the help text
}

// Command is a subcommand.
type Command struct {
	Name    string
	Summary string // one line for the program's --help
	// Run does the work. A *UsageError and what Fatal returns make the exit code 2,
	// any other error 1.
	Run func(ctx context.Context, c *Call) error
}

// Main runs the program with the arguments of the process and exits. SIGINT and
// SIGTERM end the context; a second signal ends the process at once, even if
// cleanup hangs.
func (p *Program) Main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop)

	err := p.Run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", p.Name, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var usage *UsageError
	var fatal *fatalError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage), errors.As(err, &fatal):
		return 2
	}
	return 1
}

// Run runs the subcommand that the arguments name.
func (p *Program) Run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return usagef("no command given; commands are %s; see %s --help", p.names(), p.Name)
	}
	switch args[0] {
	case "-h", "-help", "--help", "help":
		return p.help(stdout)
	case "completion":
		return p.completion(args[1:], stdout)
	case "man":
		return p.man(args[1:], stdout)
	case "-version", "--version", "version":
		if len(args) > 1 {
			return usagef("version: unexpected argument %q", args[1])
		}
		_, err := fmt.Fprintln(stdout, p.Name, p.Version())
		return err
	}
	i := slices.IndexFunc(p.Commands, func(c Command) bool { return c.Name == args[0] })
	if i < 0 {
		return usagef("unknown command %q; commands are %s", args[0], p.names())
	}
	return p.Commands[i].Run(ctx, newCall(p.Name, args, stdout, stderr))
}

func (p *Program) names() string {
	var names []string
	for _, c := range p.Commands {
		names = append(names, c.Name)
	}
	return strings.Join(append(names, "completion", "version"), ", ")
}

func (p *Program) help(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "%s\n\nUsage: %s COMMAND [flags]\n\n", p.About, p.Name)
	for _, c := range p.Commands {
		fmt.Fprintf(t, "  %s\t%s\n", c.Name, c.Summary)
	}
	fmt.Fprintf(t, "  completion\tprint the script for completion in a shell: bash, zsh or fish\n")
	fmt.Fprintf(t, "  version\tprint the version\n\n%s COMMAND --help lists the flags of a command. %s\n", p.Name, p.More)
	return t.Flush()
}
