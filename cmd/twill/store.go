package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/etcdflags"
	"github.com/twillnet/twill/internal/kubeflags"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/kube/layout"
	"github.com/twillnet/twill/lease/static"
)

// aboutStore ends the help text of the commands that read or write the store.
const aboutStore = `

The location of the store comes from the running twilld. twilld's --etcd-* flags and
those for Kubernetes, or their FLANNELD_* variables, override it.
The running twilld reads from Kubernetes on behalf of twill. If none runs here, or the
flags name another cluster, kubectl is used, which must be in PATH.`

// storeCommand is a subcommand that reads or writes the store of leases.
type storeCommand struct {
	*command.Call
	etcd    *etcdflags.Flags
	kube    *kubeflags.Flags
	file    string // a lease file to read instead; empty: the store of the daemon or of the flags
	socket  string
	timeout time.Duration

	// daemon is the status of the twilld on this node. It is nil if none answers;
	// daemonErr is then the reason.
	daemon    *status.Document
	daemonErr error
	// throughDaemon says that the daemon reads the store for this command: it is in its
	// Kubernetes cluster, or an etcd to which the daemon logs in.
	throughDaemon bool
}

// newStoreCommand defines the flags common to all of them.
func newStoreCommand(call *command.Call) *storeCommand {
	c := &storeCommand{Call: call}
	c.etcd = etcdflags.Define(c.FlagSet)
	c.kube = kubeflags.Define(c.FlagSet)
	c.StringVar(&c.socket, "socket", status.DefaultSocket, aboutSocket)
	c.DurationVar(&c.timeout, "timeout", 10*time.Second, "how long to wait for the store, `TIME`")
	return c
}

// parse parses flags and operands, and takes the settings that they leave open
// from the daemon. usage represents the operands in the help text. It returns
// true if help was requested.
func (c *storeCommand) parse(ctx context.Context, about, usage string) (operands []string, help bool, err error) {
	operands, help, err = c.ParseOperands(about+aboutStore, usage)
	if help || err != nil {
		return nil, help, err
	}
	if c.timeout <= 0 {
		return nil, false, c.Usagef("--timeout %s: want more than 0", c.timeout)
	}
	if err := errors.Join(c.etcd.Settle(os.LookupEnv), c.kube.Settle(os.LookupEnv)); err != nil {
		return nil, false, c.Usagef("%v", err)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	c.daemon, c.daemonErr = status.Fetch(ctx, c.socket)
	return operands, false, c.adopt()
}

// settings returns the daemon's settings, or the zero value if it does not
// answer.
func (c *storeCommand) settings() status.Settings {
	if c.daemon == nil || c.daemon.Settings == nil {
		return status.Settings{}
	}
	return *c.daemon.Settings
}

// adopt takes the daemon's etcd settings for the flags that are not given. If a
// flag names another etcd, the daemon's certificates do not apply to it.
func (c *storeCommand) adopt() error {
	s := c.settings()
	if k := s.Kubernetes; k != nil && !c.etcd.Given("etcd-endpoints") {
		c.kube.On = true
		its := layout.Source{
			APIURL: k.APIURL, Kubeconfig: k.Kubeconfig,
			Prefix: cmp.Or(k.Prefix, layout.DefaultPrefix), ConfigFile: cmp.Or(k.ConfigFile, layout.DefaultConfigFile),
		}
		c.kube.Adopt(its)
		c.throughDaemon = c.kube.Source == its
	}
	c.throughDaemon = c.throughDaemon || s.Login && !c.kube.On && !c.etcd.AnyGiven()
	if c.etcd.Given("etcd-endpoints") {
		s = status.Settings{Prefix: s.Prefix}
	}
	for name, value := range map[string]string{
		"etcd-endpoints": strings.Join(s.Endpoints, ","), "etcd-prefix": s.Prefix,
		"etcd-cafile": s.CAFile, "etcd-certfile": s.CertFile, "etcd-keyfile": s.KeyFile,
	} {
		if value == "" || c.etcd.Given(name) {
			continue
		}
		if err := c.Set(name, value); err != nil {
			return fmt.Errorf("%s: twilld on %s has --%s=%s: %w", c.Name(), c.socket, name, value, err)
		}
	}
	return nil
}

// leaseFile returns the path of the lease file to read, or "" if leases are not in
// one.
func (c *storeCommand) leaseFile() string {
	if c.file != "" {
		return c.file
	}
	if c.etcd.Given("etcd-endpoints") || c.kube.On {
		return ""
	}
	return c.settings().LeaseFile
}

// ask calls f with an open etcd store and a context that ends with the timeout.
// Warnings of the store go to Stderr.
func (c *storeCommand) ask(ctx context.Context, f func(context.Context, *etcd.Store) error) error {
	if file := c.leaseFile(); file != "" {
		return fmt.Errorf("%s: the twilld on this node reads its leases from %s, not from etcd; edit that file, or name an etcd with --etcd-endpoints", c.Name(), file)
	}
	if c.kube.On {
		return fmt.Errorf("%s: the leases are in Kubernetes, not in etcd: the cluster assigns podCIDRs, and the network config is the ConfigMap of the DaemonSet (kubectl -n kube-flannel edit configmap kube-flannel-cfg); or name an etcd with --etcd-endpoints", c.Name())
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	o := c.etcd.Options
	o.Logger = logging.New(c.Stderr, logging.Text, slog.LevelWarn)
	store, err := etcd.Open(ctx, o)
	if err != nil {
		return err
	}
	defer store.Close()
	return f(ctx, store)
}

// published is a store as the daemon or kubectl reads it.
type published struct {
	status.Store
	parse parser
}

// Config implements source.
func (p published) Config(ctx context.Context) (*lease.Config, error) {
	text, err := p.PublishedText(ctx)
	if err != nil {
		return nil, err
	}
	return p.parse(text)
}

// parseEtcdConfig reads the network config of etcd, as the store itself does.
func (c *storeCommand) parseEtcdConfig(text []byte) (*lease.Config, error) {
	config, err := lease.ParseConfig(text)
	if err != nil {
		return nil, &etcd.Error{Endpoints: c.etcd.Endpoints, Op: "config " + c.etcd.Prefix + "/config", Err: err, Remedy: "correct it with twill config set"}
	}
	return config, nil
}

// publishes reports whether the store is read by the daemon or by kubectl.
func (c *storeCommand) publishes() bool { return c.throughDaemon || c.kube.On }

// askPublished calls f with the store that the daemon or kubectl reads, and a context that
// ends with the timeout.
func (c *storeCommand) askPublished(ctx context.Context, f func(context.Context, published) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	p := published{Store: status.Remote(c.socket), parse: c.parseEtcdConfig}
	if c.kube.On {
		p.parse = c.kube.ParseConfig
	}
	if !c.throughDaemon {
		k, err := newKubectl(c.kube.Source)
		if err != nil {
			return err
		}
		p.Store = k
	}
	return f(ctx, p)
}

// source is a store of any kind.
type source interface {
	Leases(context.Context) ([]lease.Lease, error)
	Config(context.Context) (*lease.Config, error)
}

// read calls f with the store.
func (c *storeCommand) read(ctx context.Context, f func(context.Context, source) error) error {
	if file := c.leaseFile(); file != "" {
		s, err := static.Open(file, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return f(ctx, s)
	}
	if c.publishes() {
		return c.askPublished(ctx, func(ctx context.Context, p published) error { return f(ctx, p) })
	}
	return c.ask(ctx, func(ctx context.Context, s *etcd.Store) error { return f(ctx, s) })
}

// leases returns all leases of the store.
func (c *storeCommand) leases(ctx context.Context) (all []lease.Lease, err error) {
	err = c.read(ctx, func(ctx context.Context, s source) (err error) {
		all, err = s.Leases(ctx)
		return err
	})
	return all, err
}

// config returns the network config of the store.
func (c *storeCommand) config(ctx context.Context) (config *lease.Config, err error) {
	err = c.read(ctx, func(ctx context.Context, s source) (err error) {
		config, err = s.Config(ctx)
		return err
	})
	return config, err
}

// parseSubnets reads the name of a lease: an IPv4 subnet, an IPv6 subnet, both
// with a comma between them, or the key of etcd.
func parseSubnets(text string) (lease.Lease, error) {
	var l lease.Lease
	if !strings.Contains(text, "/") {
		subnet, ipv6Subnet, err := lease.ParseKey(lease.Key(text))
		if err != nil {
			return l, fmt.Errorf("%q is not a subnet; want one such as 10.5.7.0/24", text)
		}
		l.Subnet, l.IPv6Subnet = subnet, ipv6Subnet
		return l, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(part)
		if err != nil || p.Bits() == 0 {
			return l, fmt.Errorf("%q is not a subnet; want one such as 10.5.7.0/24", part)
		}
		if p != p.Masked() {
			return l, fmt.Errorf("%s is an address inside the subnet %s; name the subnet", part, p.Masked())
		}
		to := &l.Subnet
		if p.Addr().Is6() {
			to = &l.IPv6Subnet
		}
		if to.IsValid() {
			return l, fmt.Errorf("%q names two subnets of one address family", text)
		}
		*to = p
	}
	return l, nil
}

// subnetText names the subnets of a lease as parseSubnets reads them.
func subnetText(l lease.Lease) string {
	return status.Join(l.Subnets(), ",")
}

// noNode is shown for a reservation that withholds a subnet from all nodes.
const noNode = "none"

// nodeText names the node of a lease by its public addresses.
func nodeText(l lease.Lease) string {
	return cmp.Or(status.Join(l.Addrs(), ","), noNode)
}
