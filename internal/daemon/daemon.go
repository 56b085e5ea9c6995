// Package daemon is twilld: it reads the command line, finds the node's
// interface and lease, opens the backend that the network configuration names,
// and keeps its peers as the lease store tells them until a signal comes.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/daemon/httpd"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/version"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/metrics"
)

// Run is the whole daemon. It returns nil after SIGTERM, SIGINT or the end of
// ctx, when all it made is removed but for subnet.env. args are the arguments
// without the program's name, lookup finds variables of the environment; help
// and version go to stdout, the log to stderr. ExitCode tells what the error
// means for the process.
func Run(ctx context.Context, args []string, lookup func(string) (string, bool), stdout, stderr io.Writer) error {
	o, err := parse(args, lookup)
	switch {
	case err != nil:
		return err
	case o.help:
		_, err = stdout.Write(help())
		return err
	case o.version:
		_, err = fmt.Fprintln(stdout, "twilld", version.String())
		return err
	}
	notifySocket, _ := lookup("NOTIFY_SOCKET")
	watchdog, err := watchdog(lookup, os.Getpid())
	if err != nil {
		return err
	}
	d := &daemon{
		options:      o,
		log:          logging.New(stderr, o.logFormat, o.level()),
		state:        newState(o.source(), "the source of leases"),
		notifySocket: notifySocket,
		watchdog:     watchdog,
		choose:       underlay.Choose,
		stay:         underlay.Stay,
		links:        watchLinks,
		open:         open,
		probes:       backend.Probe,
	}
	d.state.change(func(doc *status.Document) { doc.Settings = o.settings() })
	if o.cleanup {
		return d.cleanUp(ctx)
	}
	return d.runUntilSignal(ctx)
}

// daemon is one run.
type daemon struct {
	options      *options
	log          *slog.Logger
	state        *state
	notifySocket string
	watchdog     time.Duration // how often the service manager wants a sign of life; 0: never
	// reacquires says that the store gives a new lease for one that is lost.
	// Where it does not, an operator has to, and may want to restart twilld.
	reacquires bool

	// What tests replace.
	choose func(underlay.Options) (underlay.Interface, error)
	stay   func(underlay.Interface, underlay.Options) (underlay.Interface, error)
	links  func() (changes <-chan struct{}, end func(), err error)
	open   openCarrier
	probes backend.Probes
}

// runUntilSignal runs until SIGTERM, SIGINT or the end of ctx, or until
// something fails.
func (d *daemon) runUntilSignal(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			// Before anything else, so that the second one ends the process
			// at once.
			signal.Stop(signals)
			cancel(fmt.Errorf("signal: %s", s))
		case <-ctx.Done():
		}
	}()
	err := d.run(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // told to stop while it was starting
	}
	return err
}

// run starts everything in order, each step with what the ones before it
// found, and takes it down in the opposite order.
func (d *daemon) run(ctx context.Context) (err error) {
	d.log.Info("starting", logging.KeyVersion, version.String())
	for _, f := range d.options.ignored {
		d.log.Warn("setting ignored", logging.KeySetting, f.setting, logging.KeyWhy, f.reason)
	}
	// First of all, since the socket keeps a second daemon out, and since an
	// operator wants to know what the others are waiting for.
	control, err := status.Listen(d.options.controlSocket, d.state.document)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	if d.options.healthzPort > 0 {
		web, err := d.serveHTTP()
		if err != nil {
			return err
		}
		defer web.Close()
	}

	if d.options.leaseFile == "" && d.options.embedded.on {
		embedded, failed := d.startEmbedded(ctx)
		if failed != nil {
			return failed
		}
		defer func() { err = embedded.close(err) }()
		ctx = embedded.ctx
	}
	store, end, err := d.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	// Before the interface is chosen, so that no change of it is missed.
	links, unwatch, err := d.links()
	if err != nil {
		return err
	}
	defer unwatch()
	n, err := d.join(ctx, store)
	if err != nil {
		return err
	}
	return d.forward(ctx, store, n, links)
}

// watchLinks tells of changes of interfaces until end is called.
func watchLinks() (changes <-chan struct{}, end func(), err error) {
	w, err := underlay.Watch()
	if err != nil {
		return nil, nil, err
	}
	return w.Changes(), w.Close, nil
}

func (d *daemon) serveHTTP() (*httpd.Server, error) {
	addr := netip.AddrPortFrom(d.options.healthzIP, uint16(d.options.healthzPort))
	web, err := httpd.Listen(addr, httpd.Config{
		Waiting: d.state.waiting,
		Metrics: metrics.NewRegistry(d.state.counters, d.state.gauges, version.String()),
		Logger:  d.log,
	})
	if err == nil {
		d.log.Info("health and metrics served", logging.KeyAddress, web.Addr())
	}
	return web, err
}

// join finds out what this node is in the network: its backends, its interface
// and its lease.
func (d *daemon) join(ctx context.Context, store lease.Store) (node, error) {
	n := node{options: d.options, log: d.log}
	err := d.config(ctx, store, &n)
	if err != nil {
		return n, err
	}
	d.tellChoice(&n)
	d.state.waitFor("an interface to the other nodes")
	if n.link, err = d.chooseLink(n.config); err != nil {
		return n, err
	}
	d.log.Info("interface chosen", logging.KeyInterface, n.link.Name, logging.KeyWhy, n.link.Why)

	d.state.waitFor("a lease")
	if n.told, err = n.attrs(); err != nil {
		return n, err
	}
	own, err := store.Acquire(ctx, n.told, d.previous())
	if err != nil {
		return n, err
	}
	n.own = *own
	d.log.Info("lease acquired", logging.KeySubnet, n.own.Subnets())
	d.state.change(func(doc *status.Document) { n.tell(doc) })
	return n, nil
}

// tellChoice logs which backends were chosen, and why.
func (d *daemon) tellChoice(n *node) {
	if n.settings.Carries() {
		d.log.Info("backends chosen", logging.KeyBackends, n.choice.Ways, logging.KeyWhy, n.choice.Why)
	}
}

// chooseLink chooses the interface. In a network of both families it takes one
// that has addresses of both, if there is one; else one of either family will
// do, since the datagrams of one carry the packets of both.
func (d *daemon) chooseLink(c *lease.Config) (underlay.Interface, error) {
	o := d.underlayOptions(c)
	link, err := d.choose(o)
	if err == nil || !o.NeedIPv4 || !o.NeedIPv6 {
		return link, err
	}
	for _, v4 := range []bool{true, false} {
		o.NeedIPv4, o.NeedIPv6 = v4, !v4
		if link, err := d.choose(o); err == nil {
			return link, nil
		}
	}
	return underlay.Interface{}, err
}

// underlayOptions says which interface to choose for the network of c.
func (d *daemon) underlayOptions(c *lease.Config) underlay.Options {
	o := d.options.underlay()
	o.Own = d.options.tunName
	o.NeedIPv4, o.NeedIPv6 = c.IPv4.Enabled(), c.IPv6.Enabled()
	return o
}

// previous returns the subnets that the node had in its last life. Not to know
// them costs at most a change of subnet, so it is no reason not to start.
func (d *daemon) previous() lease.Previous {
	env, err := lease.ReadSubnetEnv(d.options.subnetFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.log.Warn("subnet file not readable", logging.KeyError, err)
	}
	return env.Previous()
}
