package command

import (
	"flag"
	"fmt"
	"io"
	"strings"
)

// man writes the manual page of the program in the format of man(7). It takes no
// arguments. It is for packages, so the help text does not list it.
func (p *Program) man(args []string, w io.Writer) error {
	if len(args) > 0 {
		return usagef("man: unexpected argument %q", args[0])
	}
	var commands strings.Builder
	for _, c := range p.Commands {
		d, err := p.describe(c)
		if err != nil {
			return fmt.Errorf("describe %s: %w", c.Name, err)
		}
		fmt.Fprintf(&commands, ".SS %s\n.B %s %s\n[flags] %s\n.PP\n%s\n", roff(c.Name), roff(p.Name), roff(c.Name), roff(d.operands), paragraphs(d.about))
		for _, f := range d.flags {
			value, usage := flag.UnquoteUsage(f)
			if value != "" {
				value = "=\\fI" + roff(value) + "\\fR"
			}
			fmt.Fprintf(&commands, ".TP\n\\fB%s\\fR%s\n%s", roff(dashed(f)), value, paragraphs(usage))
			if f.DefValue != "" && f.DefValue != "false" {
				fmt.Fprintf(&commands, " (default %s)", roff(f.DefValue))
			}
			commands.WriteString("\n")
		}
	}
	_, err := fmt.Fprintf(w, `.TH %s 8 "" "%s %s"
.SH NAME
%s \- %s
.SH SYNOPSIS
.B %s
.I command
[flags]
.SH DESCRIPTION
%s
%s
.SH COMMANDS
%s`, strings.ToUpper(p.Name), roff(p.Name), roff(p.Version()), roff(p.Name), roff(firstSentence(p.About)),
		roff(p.Name), paragraphs(p.About), paragraphs(p.More), commands.String())
	return err
}

// firstSentence returns about up to the first full stop, as the page's one-line
// description.
func firstSentence(about string) string {
	about = strings.ReplaceAll(about, "\n", " ")
	about, _, _ = strings.Cut(about, ". ")
	return strings.TrimSuffix(about, ".")
}

// paragraphs returns text for man(7). Lines that are indented stay as they are.
func paragraphs(text string) string {
	var out []string
	verbatim := false
	for _, line := range strings.Split(text, "\n") {
		indented := strings.HasPrefix(line, "  ")
		switch {
		case indented && !verbatim:
			out = append(out, ".nf")
		case !indented && verbatim:
			out = append(out, ".fi")
		}
		verbatim = indented
		if line == "" {
			line = ".PP"
		} else {
			line = roff(line)
		}
		out = append(out, line)
	}
	if verbatim {
		out = append(out, ".fi")
	}
	return strings.Join(out, "\n")
}

// roff escapes text for man(7).
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
