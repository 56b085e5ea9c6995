package daemon

import (
	"cmp"
	"errors"
	"flag"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/internal/kubeflags"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/tun"
)

// parse reads the arguments, without the program's name, and then the
// environment for flags that the arguments do not set. Its errors are usage
// errors.
func parse(args []string, env environment) (*options, error) {
	o := defaults()
	fs := flag.NewFlagSet("twilld", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	defineAll(fs, o)
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		o.help = true
		return o, nil
	case err != nil:
		return nil, wrongFlag(err)
	case o.version:
		return o, nil
	}
	if err := o.passOver(fs.Args()); err != nil {
		return nil, err
	}
	settings, err := settle(fs, env)
	if err != nil {
		return nil, err
	}
	o.ignore(fs, settings)
	o.ignored = append(o.ignored, env.unknown()...)
	o.kube.Node, o.kube.PodNamespace, o.kube.PodName = env["NODE_NAME"], env["POD_NAMESPACE"], env["POD_NAME"]
	if o.embedded.on {
		o.embedded.settle(env)
		if settings["etcd-endpoints"] == "" {
			o.etcd.Endpoints = []string{o.embedded.endpoint()}
		}
	}
	return o, o.check()
}

func defaults() *options {
	return &options{
		healthzIP:      netip.IPv4Unspecified(),
		tunName:        "flannel0",
		mtuFloor:       1280,
		subnetFile:     "/run/flannel/subnet.env",
		controlSocket:  status.DefaultSocket,
		logFormat:      logging.Text,
		onLost:         reacquireOnLost,
		renewMargin:    60,
		forwardRules:   true,
		resync:         5,
		dropPrivileges: true,
		switches:       fastpath.Switches{BulkQueue: tun.Off},
		etcd:           etcdflags.Defaults(),
		kube:           kubernetes{Options: kube.Options{Source: kubeflags.Defaults(), Condition: true}},
	}
}

func defineAll(fs *flag.FlagSet, o *options) {
	for _, f := range flags {
		f.define(fs, o)
	}
	for old, name := range renamed {
		fs.Var(fs.Lookup(name).Value, old, "")
	}
	etcdflags.Trim(fs)
}

// unknownFlag is the prefix of package flag's error for an undefined flag,
// which has no error value to compare with.
const unknownFlag = "flag provided but not defined: -"

func wrongFlag(err error) error {
	name, unknown := strings.CutPrefix(err.Error(), unknownFlag)
	if !unknown {
		return usagef("%v", err)
	}
	if near := nearest(name, names()); near != "" {
		return usagef("unknown flag --%s; did you mean --%s?", name, near)
	}
	return usagef("unknown flag --%s; --help lists them", name)
}

// passOver ignores arguments after the flags, as flannel does, but refuses a
// flag among them, which would have no effect.
func (o *options) passOver(args []string) error {
	for _, a := range args {
		if strings.HasPrefix(a, "-") {
			return usagef("argument %q: the flags after it, such as %s, would be ignored; omit it, or join it to its flag with \"=\"", args[0], a)
		}
		o.ignored = append(o.ignored, ignoredFlag{a, "every setting is a flag; see --help"})
	}
	return nil
}

// names returns the names of all flags, the former ones last.
func names() []string {
	all := make([]string, len(flags))
	for i, f := range flags {
		all[i] = f.name
	}
	return slices.AppendSeq(all, maps.Keys(renamed))
}

// newName returns the present name of a flag, given that or a former one.
func newName(name string) string { return cmp.Or(renamed[name], name) }

// settle sets the flags that the command line left unset from the environment,
// where an empty variable counts as unset, as in flannel. It returns, for each
// flag that is set now, the name of the setting for messages: "--iface" or
// "FLANNELD_IFACE".
func settle(fs *flag.FlagSet, env environment) (map[string]string, error) {
	settings := map[string]string{}
	fs.Visit(func(f *flag.Flag) { settings[newName(f.Name)] = "--" + f.Name })
	for _, name := range names() {
		v := env[etcdflags.Variable(name)]
		if v == "" || settings[newName(name)] != "" {
			continue
		}
		settings[newName(name)] = etcdflags.Variable(name)
		if err := fs.Set(name, v); err != nil {
			return nil, usagef("%s: invalid value %q: %v", etcdflags.Variable(name), v, err)
		}
	}
	return settings, nil
}

// ignore keeps, for the log, the flags that were set and have no effect.
func (o *options) ignore(fs *flag.FlagSet, settings map[string]string) {
	for _, f := range flags {
		setting, ok := settings[f.name]
		if !ok || f.ignored == nil || f.ignored.when != nil && !f.ignored.when(o) {
			continue
		}
		switch fs.Lookup(f.name).Value.String() {
		case "", "false", "0":
			continue // turned off explicitly
		}
		o.ignored = append(o.ignored, ignoredFlag{setting, f.ignored.reason})
	}
}
