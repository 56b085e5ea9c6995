// Package etcdflags defines flannel's --etcd-* flags: names, help texts, defaults
// and environment variables. twilld adds them to its own table and the commands
// of twill define them through this package, so both find the same etcd with the
// same settings.
package etcdflags

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/twillnet/twill/lease/etcd"
)

// Flag is one of the flags.
type Flag struct {
	Name  string // without dashes
	Value string // placeholder for its value in a help text
	Help  string
	// Field returns a pointer to the option that the flag sets: a *string or a
	// flag.Value.
	Field func(*etcd.Options) any
}

// All are the flags, in the order of the help text.
var All = []Flag{
	{"etcd-endpoints", "URL,...",
		"members of the etcd cluster that stores the leases; one that answers is enough",
		func(o *etcd.Options) any { return (*endpoints)(&o.Endpoints) }},
	{"etcd-prefix", "PREFIX",
		"prefix of the keys of the network",
		func(o *etcd.Options) any { return &o.Prefix }},
	{"etcd-keyfile", "FILE",
		"private key of the certificate that this node presents to etcd (PEM)",
		func(o *etcd.Options) any { return &o.KeyFile }},
	{"etcd-certfile", "FILE",
		"certificate that this node presents to etcd (PEM)",
		func(o *etcd.Options) any { return &o.CertFile }},
	{"etcd-cafile", "FILE",
		"certificate authorities that may sign etcd's certificate (PEM); default: the system's",
		func(o *etcd.Options) any { return &o.CAFile }},
	{"etcd-username", "NAME",
		"user of etcd",
		func(o *etcd.Options) any { return &o.Username }},
	{"etcd-password", "PASSWORD",
		"the user's password; all users of this host can read command lines, so set FLANNELD_ETCD_PASSWORD instead",
		func(o *etcd.Options) any { return &o.Password }},
}

// Variable returns the name of a flag's environment variable, as in flannel:
// FLANNELD_IFACE for iface.
func Variable(flag string) string {
	return "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Defaults returns flannel's defaults, without a Logger.
func Defaults() etcd.Options {
	return etcd.Options{
		Endpoints: []string{"http://127.0.0.1:4001", "http://127.0.0.1:2379"},
		Prefix:    etcd.DefaultPrefix,
	}
}

// Flags are the flags of one command line.
type Flags struct {
	etcd.Options // without a Logger
	fs           *flag.FlagSet
}

// Define adds the flags to fs.
func Define(fs *flag.FlagSet) *Flags {
	f := &Flags{Options: Defaults(), fs: fs}
	for _, d := range All {
		usage := "`" + d.Value + "`: " + d.Help // as PrintDefaults wants it
		switch p := d.Field(&f.Options).(type) {
		case *string:
			fs.StringVar(p, d.Name, *p, usage)
		case flag.Value:
			fs.Var(p, d.Name, usage)
		}
		trim(fs.Lookup(d.Name))
	}
	return f
}

// Trim makes all flags of fs ignore white space around a value, including a CR,
// which values from files and wrapped lines may contain.
func Trim(fs *flag.FlagSet) { fs.VisitAll(trim) }

func trim(f *flag.Flag) { f.Value = trimmed{f.Value} }

type trimmed struct{ flag.Value }

// String implements flag.Value, for the zero value too.
func (t trimmed) String() string {
	if t.Value == nil {
		return ""
	}
	return t.Value.String()
}

// Set implements flag.Value.
func (t trimmed) Set(v string) error { return t.Value.Set(strings.TrimSpace(v)) }

// IsBoolFlag reports to package flag whether the value may be omitted.
func (t trimmed) IsBoolFlag() bool {
	b, ok := t.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// Given reports whether the command line or, after Settle, the environment set
// the flag.
func (f *Flags) Given(name string) bool {
	given := false
	f.fs.Visit(func(fl *flag.Flag) { given = given || fl.Name == name })
	return given
}

// AnyGiven is Given for all of the flags.
func (f *Flags) AnyGiven() bool {
	return slices.ContainsFunc(All, func(d Flag) bool { return f.Given(d.Name) })
}

// Settle sets the flags that the command line leaves unset from the
// environment, where an empty variable counts as unset, and checks them all. It
// must be called after fs is parsed.
func (f *Flags) Settle(lookup func(string) (string, bool)) error {
	for _, d := range All {
		v, _ := lookup(Variable(d.Name))
		if v == "" || f.Given(d.Name) {
			continue
		}
		if err := f.fs.Set(d.Name, v); err != nil {
			return fmt.Errorf("%s: invalid value %q: %w", Variable(d.Name), v, err)
		}
	}
	return f.Check()
}

// endpoints is a flag whose value is a comma-separated list. Set replaces the
// whole list; a trailing comma is ignored, as in flannel.
type endpoints []string

// String implements flag.Value.
func (e *endpoints) String() string { return strings.Join(*e, ",") }

// Set implements flag.Value.
func (e *endpoints) Set(v string) error {
	var list endpoints
	for part := range strings.SplitSeq(strings.TrimSuffix(strings.TrimSpace(v), ","), ",") {
		if part = strings.TrimSpace(part); part == "" {
			return errors.New("want a comma-separated list without empty items")
		}
		list = append(list, part)
	}
	*e = list
	return nil
}
