// Package etcdflags has flannel's --etcd-* flags: their names, texts, defaults and
// variables of the environment. twilld puts them into its own table, the commands
// of twill define them here, so that who runs twill with the daemon's settings
// talks to the daemon's etcd.
package etcdflags

import (
	"flag"
	"fmt"
	"strings"
)

// Flag is one of the flags.
type Flag struct {
	Name  string // without dashes
	Value string // what stands for its value in a help text
	Help  string
	// Field points to where the value goes: a *string or a flag.Value.
	Field func(*Settings) any
}

// All are the flags, in the order of the help text.
var All = []Flag{
	{"etcd-endpoints", "URL,...",
		"members of the etcd cluster with the leases; one that answers is enough",
		func(s *Settings) any { return &s.Endpoints }},
	{"etcd-prefix", "PREFIX",
		"where the keys of the network stand",
		func(s *Settings) any { return &s.Prefix }},
	{"etcd-keyfile", "FILE",
		"key of the certificate that this node shows to etcd (PEM)",
		func(s *Settings) any { return &s.KeyFile }},
	{"etcd-certfile", "FILE",
		"certificate that this node shows to etcd (PEM)",
		func(s *Settings) any { return &s.CertFile }},
	{"etcd-cafile", "FILE",
		"certificates of the authorities that etcd's is checked with (PEM); the system's if there is none",
		func(s *Settings) any { return &s.CAFile }},
	{"etcd-username", "NAME",
		"user of etcd",
		func(s *Settings) any { return &s.Username }},
	{"etcd-password", "PASSWORD",
		"the user's password; all users of this host can read command lines, so set FLANNELD_ETCD_PASSWORD instead",
		func(s *Settings) any { return &s.Password }},
}

// Variable is the environment's name for a flag, as in flannel: FLANNELD_IFACE
// for iface.
func Variable(flag string) string {
	return "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Flags are the flags of one command line.
type Flags struct {
	Settings
	fs *flag.FlagSet
}

// Define adds the flags to fs.
func Define(fs *flag.FlagSet) *Flags {
	f := &Flags{Settings: Defaults(), fs: fs}
	for _, d := range All {
		usage := "`" + d.Value + "`: " + d.Help // as PrintDefaults wants it
		switch p := d.Field(&f.Settings).(type) {
		case *string:
			fs.StringVar(p, d.Name, *p, usage)
		case flag.Value:
			fs.Var(p, d.Name, usage)
		}
	}
	return f
}

// Settle sets the flags that the command line left alone from the environment,
// where an empty variable counts as none, and checks them all. It is called
// after fs is parsed.
func (f *Flags) Settle(lookup func(string) (string, bool)) error {
	given := map[string]bool{}
	f.fs.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	for _, d := range All {
		v, _ := lookup(Variable(d.Name))
		if v == "" || given[d.Name] {
			continue
		}
		if err := f.fs.Set(d.Name, v); err != nil {
			return fmt.Errorf("%s: invalid value %q: %w", Variable(d.Name), v, err)
		}
	}
	return f.Check()
}
