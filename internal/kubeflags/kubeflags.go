// Package kubeflags defines flannel's flags for Kubernetes: their names, help texts,
// defaults and environment variables. twilld adds them to its own table; the commands
// of twill define them through this package.
package kubeflags

import (
	"cmp"
	"flag"
	"fmt"

	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/lease/kube/layout"
)

// Flag is one of the flags that locate the API and the network configuration.
// All have string values.
type Flag struct {
	Name, Value, Help string
	Field             func(*layout.Source) *string
}

// Manager is the flag that makes Kubernetes the store of leases.
const Manager = "kube-subnet-mgr"

// All are the flags, in the order of the help text.
var All = []Flag{
	{"kube-api-url", "URL",
		"API server, overriding the kubeconfig's; without a kubeconfig, requests carry no credentials (default: the cluster's own, from the pod's service account)",
		func(o *layout.Source) *string { return &o.APIURL }},
	{"kubeconfig-file", "FILE",
		"kubeconfig whose current context has the API server and credentials, for a twilld outside a pod",
		func(o *layout.Source) *string { return &o.Kubeconfig }},
	{"kube-annotation-prefix", "PREFIX",
		"prefix of the names of the node annotations",
		func(o *layout.Source) *string { return &o.Prefix }},
	{"net-config-path", "FILE",
		"file with the network configuration (JSON); changes are applied at once",
		func(o *layout.Source) *string { return &o.ConfigFile }},
}

// Defaults returns flannel's defaults.
func Defaults() layout.Source {
	return layout.Source{Prefix: layout.DefaultPrefix, ConfigFile: layout.DefaultConfigFile}
}

// Flags are the flags of one command line.
type Flags struct {
	layout.Source
	On bool
	fs *flag.FlagSet
}

// Define adds the flags to fs.
func Define(fs *flag.FlagSet) *Flags {
	f := &Flags{Source: Defaults(), fs: fs}
	fs.BoolVar(&f.On, Manager, false, "leases are in Kubernetes, not in etcd; implied by --kube-api-url and --kubeconfig-file")
	for _, d := range All {
		p := d.Field(&f.Source)
		fs.StringVar(p, d.Name, *p, "`"+d.Value+"`: "+d.Help)
	}
	return f
}

// Settle sets the flags that the command line leaves unset from the environment,
// where an empty variable counts as unset, and checks them all. It must be called
// after fs is parsed.
func (f *Flags) Settle(lookup func(string) (string, bool)) error {
	given := map[string]bool{}
	f.fs.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	names := []string{Manager}
	for _, d := range All {
		names = append(names, d.Name)
	}
	for _, name := range names {
		v, _ := lookup(etcdflags.Variable(name))
		if v == "" || given[name] {
			continue
		}
		if err := f.fs.Set(name, v); err != nil {
			return fmt.Errorf("%s: invalid value %q: %w", etcdflags.Variable(name), v, err)
		}
	}
	f.On = f.On || f.APIURL != "" || f.Kubeconfig != ""
	return f.Check()
}

// Adopt takes a daemon's options for those that are not given. They apply even
// if a flag names another API, since they do not belong to the daemon's API.
func (f *Flags) Adopt(o layout.Source) {
	defaults := Defaults()
	for _, d := range All {
		if p := d.Field(&f.Source); *p == *d.Field(&defaults) {
			*p = cmp.Or(*d.Field(&o), *p)
		}
	}
}
