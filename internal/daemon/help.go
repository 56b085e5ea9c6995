package daemon

import (
	"bytes"
	"flag"
	"fmt"
	"strings"
)

const helpHead = `twilld connects the pods of a cluster's nodes in flanneld's place and formats:
by VXLAN devices of the kernel, by datagrams of its own (UDP port 8285), or by
plain routes.

Usage: twilld [flags]

Flags may be written -flag or --flag, with "=" or a space before the value. Each
is also read from the environment, as FLANNELD_ and its name in capitals with
underscores (--iface: FLANNELD_IFACE); the command line wins.

Leases come from etcd or Kubernetes (--kube-subnet-mgr), in flannel's layout, or
from a file: --lease-file.

All of flannel's flags are known. Those that ask for something twilld does not
do are ignored with a warning.
`

const helpTail = `
Exit codes: 0 after SIGTERM or SIGINT, 2 for an invalid command line or
environment, 1 for anything else. A second signal ends twilld at once.
`

// Columns of the help text:
const (
	helpIndent = 8
	helpWidth  = 80
)

// help is the text of --help.
func help() []byte {
	fs := flag.NewFlagSet("", flag.ContinueOnError)
	defineAll(fs, defaults())
	var b bytes.Buffer
	b.WriteString(helpHead)
	for _, g := range groups {
		fmt.Fprintf(&b, "\n%s\n", g)
		for _, f := range flags {
			if f.group == g {
				f.describe(&b, fs.Lookup(f.name).DefValue)
			}
		}
	}
	b.WriteString(helpTail)
	return b.Bytes()
}

// describe writes the flag and its help text.
func (f *flagDef) describe(b *bytes.Buffer, def string) {
	name := strings.TrimRight("  --"+f.name+" "+f.value, " ")
	text := f.help
	if def != "" && def != "false" && (f.ignored == nil || f.ignored.when != nil) {
		text += " (default " + strings.ToLower(def) + ")" // slog writes INFO
	}
	fmt.Fprintln(b, name)
	column := 0
	for word := range strings.FieldsSeq(text) {
		switch {
		case column == 0:
			b.WriteString(strings.Repeat(" ", helpIndent))
			column = helpIndent
		case column+1+len(word) > helpWidth:
			b.WriteString("\n" + strings.Repeat(" ", helpIndent))
			column = helpIndent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	b.WriteByte('\n')
}
