// Package etcdflags gives a command twilld's --etcd-* flags, with the same
// names, defaults and variables of the environment, so that who runs twill with
// the daemon's settings talks to the daemon's etcd.
package etcdflags

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"

	"github.com/twillnet/twill/lease/etcd"
)

// Flags are the flags of one command line.
type Flags struct {
	fs                        *flag.FlagSet
	endpoints, prefix         string
	keyFile, certFile, caFile string
	username                  string
	password                  password
}

// password is a flag that no help text shows.
type password string

// String implements flag.Value.
func (p *password) String() string { return "" }

// Set implements flag.Value.
func (p *password) Set(v string) error {
	*p = password(v)
	return nil
}

// Define adds the flags to fs.
func Define(fs *flag.FlagSet) *Flags {
	f := &Flags{fs: fs}
	fs.StringVar(&f.endpoints, "etcd-endpoints", "http://127.0.0.1:4001,http://127.0.0.1:2379", "members of the etcd cluster with the leases, `URL,...`")
	fs.StringVar(&f.prefix, "etcd-prefix", etcd.DefaultPrefix, "where the keys of the network stand, `PREFIX`")
	fs.StringVar(&f.keyFile, "etcd-keyfile", "", "`FILE` with the key of the certificate that is shown to etcd (PEM)")
	fs.StringVar(&f.certFile, "etcd-certfile", "", "`FILE` with that certificate (PEM)")
	fs.StringVar(&f.caFile, "etcd-cafile", "", "`FILE` with the authorities that etcd's certificate is checked with (PEM)")
	fs.StringVar(&f.username, "etcd-username", "", "user of etcd, `NAME`")
	fs.Var(&f.password, "etcd-password", "the user's `PASSWORD`; set FLANNELD_ETCD_PASSWORD instead, which no other user can read")
	return f
}

// Settle sets the flags that the command line left alone from the environment,
// where an empty variable counts as none, and checks them all. It is called
// after fs is parsed.
func (f *Flags) Settle(lookup func(string) (string, bool)) error {
	given := map[string]bool{}
	f.fs.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	f.fs.VisitAll(func(fl *flag.Flag) {
		if given[fl.Name] || !strings.HasPrefix(fl.Name, "etcd-") {
			return
		}
		if v, _ := lookup(variable(fl.Name)); v != "" {
			_ = fl.Value.Set(v) // they are texts, which take any value
		}
	})
	switch {
	case f.prefix == "":
		return errors.New("--etcd-prefix: the prefix of the network's keys is missing")
	case (f.username == "") != (f.password == ""):
		return errors.New("--etcd-username and --etcd-password come together: set both or neither")
	case (f.certFile == "") != (f.keyFile == ""):
		return errors.New("--etcd-certfile and --etcd-keyfile come together: set both or neither")
	}
	for _, e := range f.list() {
		if e == "" {
			return fmt.Errorf("--etcd-endpoints %q: want one or more with commas in between, and none of them empty", f.endpoints)
		}
	}
	return (&etcd.Options{Endpoints: f.list()}).CheckEndpoints()
}

// variable is the environment's name for a flag: FLANNELD_ETCD_PREFIX.
func variable(flag string) string {
	return "FLANNELD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func (f *Flags) list() []string {
	list := strings.Split(f.endpoints, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

// Options returns what the flags say. Settle has been called.
func (f *Flags) Options(log *slog.Logger) etcd.Options {
	return etcd.Options{
		Endpoints: f.list(), Prefix: f.prefix,
		CAFile: f.caFile, CertFile: f.certFile, KeyFile: f.keyFile,
		Username: f.username, Password: etcd.Secret(f.password),
		Logger: log,
	}
}
