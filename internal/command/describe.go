package command

import (
	"context"
	"flag"
	"io"
)

// description is the help of a subcommand, for completion and manual pages.
type description struct {
	about, operands string // of its help text
	flags           []*flag.Flag
}

// describe returns the help of a subcommand. The subcommand runs until it parses its
// command line.
func (p *Program) describe(c Command) (description, error) {
	var d description
	call := newCall(p.Name, []string{c.Name}, io.Discard, io.Discard)
	call.described = &d
	if err := c.Run(context.Background(), call); err != nil {
		return d, err
	}
	call.VisitAll(func(f *flag.Flag) { d.flags = append(d.flags, f) })
	return d, nil
}
