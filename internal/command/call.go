package command

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// Call is one execution of a subcommand. The flag set has the subcommand's name
// and no flags yet.
type Call struct {
	*flag.FlagSet
	Program        string
	Arguments      []string // after the name
	Stdout, Stderr io.Writer

	described *description // not nil: to be filled in instead of running
}

func newCall(program string, args []string, stdout, stderr io.Writer) *Call {
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	fs.SetOutput(io.Discard) // errors are returned, and help goes to Stdout
	return &Call{FlagSet: fs, Program: program, Arguments: args[1:], Stdout: stdout, Stderr: stderr}
}

// ParseFlags parses the flags of a subcommand that takes no operands. about
// describes the subcommand in its help text. If help was requested, ParseFlags
// writes it to Stdout and returns true.
func (c *Call) ParseFlags(about string) (help bool, err error) {
	_, help, err = c.ParseOperands(about, "")
	return help, err
}

// ParseOperands is like ParseFlags for a subcommand that also takes operands,
// before, between or after its flags. usage represents them in the help text; if
// it is empty, operands are refused.
func (c *Call) ParseOperands(about, usage string) (operands []string, help bool, err error) {
	if c.described != nil {
		c.described.about, c.described.operands = about, usage
		return nil, true, nil
	}
	args := c.Arguments
	for {
		err := c.Parse(args)
		switch {
		case errors.Is(err, flag.ErrHelp):
			line := strings.TrimRight(fmt.Sprintf("%s %s [flags] %s", c.Program, c.Name(), usage), " ")
			fmt.Fprintf(c.Stdout, "Usage: %s\n\n%s\n\n", line, about)
			c.SetOutput(c.Stdout)
			c.PrintDefaults()
			return nil, true, nil
		case err != nil:
			return nil, false, c.Usagef("%v", err)
		}
		switch {
		case c.NArg() == 0:
			return operands, false, nil
		case usage == "":
			return nil, false, c.Usagef("unexpected argument %q", c.Arg(0))
		}
		operands, args = append(operands, c.Arg(0)), c.FlagSet.Args()[1:]
	}
}

// UsageError reports an invalid command line.
type UsageError struct{ text string }

func (e *UsageError) Error() string { return e.text }

// fatalError is what Fatal returns.
type fatalError struct{ error }

func (e *fatalError) Unwrap() error { return e.error }

// Fatal wraps err so that the exit code is 2, for subcommands whose exit code 1 means
// that they have done their work and the answer is no.
func Fatal(err error) error { return &fatalError{err} }

// Usagef returns a *UsageError that begins with the subcommand; format and args
// are as in fmt.Sprintf.
func (c *Call) Usagef(format string, args ...any) error {
	return usagef("%s: %s", c.Name(), fmt.Sprintf(format, args...))
}

func usagef(format string, args ...any) error {
	return &UsageError{fmt.Sprintf(format, args...)}
}
