// Package daemon is twilld: it reads the command line, finds the node's
// interface and lease, opens the backend that the network configuration names,
// and keeps its peers in line with the lease store until it receives a signal.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/fastpath"
	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/daemon/httpd"
	"github.com/twillnet/twill/internal/daemon/webui"
	"github.com/twillnet/twill/internal/host/underlay"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/probe"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/internal/version"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/kube"
	"github.com/twillnet/twill/metrics/prom"
)

// gcPercent is the value of Go's GOGC unless the environment sets it. The data path does
// not allocate, so only the control plane needs the collector. At 5,000 nodes in Kubernetes
// with 20 changes a second, this value saves 11 of 89 MB compared with Go's 100, and the
// 99th percentile of the time from a change to its use is 41 ms instead of 39.
const gcPercent = 50

// Run runs the daemon. It returns nil after SIGTERM, SIGINT or the end of ctx,
// once everything it created except subnet.env is removed. args are the
// arguments without the program's name, environ is in the form of [os.Environ];
// help and version go to stdout, the log to stderr. ExitCode maps the error to
// an exit code.
func Run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) (err error) {
	defer func() { err = logging.Explain(err) }()
	env := newEnvironment(environ)
	o, err := parse(args, env)
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
	watchdog, err := watchdog(env, os.Getpid())
	if err != nil {
		return err
	}
	if env["GOGC"] == "" {
		debug.SetGCPercent(gcPercent)
	}
	level := logging.NewLevel(o.level())
	d := &daemon{
		options:      o,
		log:          logging.New(stderr, o.logFormat, level),
		level:        level,
		handovers:    make(chan *handover.Offer),
		state:        newState(o.source(), "the source of leases"),
		notifySocket: env["NOTIFY_SOCKET"],
		watchdog:     watchdog,
		choose:       underlay.Choose,
		stay:         underlay.Stay,
		links:        underlay.Watch,
		addrs:        hostAddrs,
		gateways:     hostGateways,
		identity:     hostID,
		answerWithin: answerWithin,
		rest:         rest,
		probes:       backend.Probe,
		macs:         dataplane.ReadMACs,
	}
	if o.probeInterval > 0 {
		d.probeMetrics = prom.NewProbes()
		d.state.probes = probe.New(time.Duration(o.probeInterval)*time.Second, d.state.peers, d.probeMetrics)
	}
	etcd.LogGRPC(d.log)
	d.open = d.openDataPlane
	d.state.doc.Settings = o.settings()
	switch {
	case o.dryRun:
		return d.check(ctx, stdout)
	case o.cleanup:
		return d.cleanUp(ctx)
	case o.reload:
		return d.reload(ctx, args, stderr)
	}
	d.dropPrivileges()
	if err := d.inherit(func(name string) string { return env[name] }, os.Getpid()); err != nil {
		return err
	}
	return d.runUntilSignal(ctx)
}

// daemon is one run of the daemon.
type daemon struct {
	options      *options
	log          *slog.Logger
	level        *logging.Level // of log
	state        *state
	probeMetrics *prom.Probes  // nil if peers are not probed
	taps         fastpath.Taps // of all data planes
	notifySocket string
	watchdog     time.Duration // interval of keep-alives to the service manager; 0: none
	// nodeAddrs returns the addresses in the store that select this node's interface;
	// nil if the store has none.
	nodeAddrs func(context.Context) (ipv4, ipv6 netip.Addr, err error)
	// kubernetes is the store if leases are in Kubernetes; nil before it is opened.
	kubernetes *kube.Store
	// readable is the store that commands read through this process; nil before it is
	// opened, and with a lease file.
	readable atomic.Pointer[status.Store]
	// ready is called each time the node is found ready; it must not block. It is
	// nil if the store does not need it.
	ready func()

	overrides string // a file that only CAP_DAC_OVERRIDE opens; empty: none
	opened    func() // called once, when the node is ready for the first time; may be nil

	kernelRefused error // why the kernel path that is wanted cannot be used

	inherited handover.Descriptors // of an earlier run, until a data plane is open
	stored    []string             // names of the descriptors of which the service manager has copies
	takeover  *handover.Takeover   // nil if there is no running process to take over from, or after the handover
	handovers chan *handover.Offer // requests of other processes
	serving   []func() error       // stops what serve started, in reverse order
	etcdAddrs []netip.Addr         // see inUse

	// Tests replace these.
	choose          func(underlay.Options) (underlay.Interface, error)
	stay            func(underlay.Interface, underlay.Options) (underlay.Interface, error)
	links           func() (changes <-chan struct{}, end func(), err error)
	open            func(node) (dataPlane, error)
	addrs, gateways func() ([]netip.Addr, error)
	probes          backend.Probes
	identity        func(underlay.Interface) string // the ID of this host, or ""
	answerWithin    time.Duration
	rest            func(context.Context, time.Duration)
	macs            func(backend.Settings, backend.Choice) (dataplane.MACs, error)
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
			// Stop first, so that a second signal ends the process at once.
			signal.Stop(signals)
			d.state.stop()
			cancel(fmt.Errorf("signal: %s", s))
		case <-ctx.Done():
		}
	}()
	began := time.Now()
	err := d.run(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil // stopped during startup
	}
	if err != nil && d.notifySocket != "" && d.takeover == nil {
		d.rest(ctx, failsAfter-time.Since(began))
	}
	return err
}

// failsAfter is the minimum time that a service runs before it fails. The service manager
// restarts it at once, in case it was killed, and a start that cannot succeed must not
// keep a CPU busy.
const failsAfter = 250 * time.Millisecond

// rest returns after the given time, or when ctx is done.
func rest(ctx context.Context, during time.Duration) {
	select {
	case <-time.After(during):
	case <-ctx.Done():
	}
}

// run starts everything in order, each step building on the ones before it, and
// stops everything in reverse order.
func (d *daemon) run(ctx context.Context) (err error) {
	d.log.Info("starting", logging.KeyVersion, version.String())
	for _, f := range d.options.ignored {
		d.log.Warn("setting ignored", logging.KeySetting, f.setting, logging.KeyWhy, f.reason)
	}
	defer func() { err = errors.Join(err, d.endServing()) }()
	if t := d.takeover; t != nil {
		defer func() { _ = t.Close() }() // no effect once the old process has ended
	} else if err := d.serve(); err != nil {
		return err
	}

	if d.options.leaseFile == "" && d.options.embedded.on {
		embedded, failed := d.startEmbedded(ctx)
		if failed != nil {
			return failed
		}
		defer func() { err = embedded.close(err) }()
		ctx = embedded.ctx
	}
	if err := d.probeKernelPath(ctx); err != nil {
		return err
	}
	store, err := d.openStore(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	defer d.keepEvents(ctx)()
	// Watch before the interface is chosen, so that no change to it is missed.
	links, unwatch, err := d.links()
	if err != nil {
		return err
	}
	defer unwatch()
	for {
		s := d.newSession(store)
		if err := s.join(ctx, links); err != nil {
			return err
		}
		if err := s.run(ctx, links); !errors.Is(err, errYield) {
			return err
		}
	}
}

// serve answers on the control socket and, if configured, on the health port. It
// is the first step, since the socket keeps a second daemon out and lets an
// operator see what later steps are waiting for. If this process takes over from
// another, serve runs once the other has ended.
func (d *daemon) serve() error {
	control, err := status.Listen(d.options.controlSocket, d.state.document, d.log, d.routes()...)
	if err != nil {
		return err
	}
	d.serving = append(d.serving, control.Close)
	if d.options.healthzPort == 0 {
		return nil
	}
	web, err := d.serveHTTP()
	if err != nil {
		return err
	}
	d.serving = append(d.serving, func() error { web.Close(); return nil })
	return nil
}

func (d *daemon) endServing() error {
	var errs []error
	for _, end := range slices.Backward(d.serving) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (d *daemon) serveHTTP() (*httpd.Server, error) {
	addr := netip.AddrPortFrom(d.options.healthzIP, uint16(d.options.healthzPort))
	registry := prom.NewRegistry(d.state.counters, d.state.gauges, version.String())
	if d.probeMetrics != nil {
		registry.MustRegister(d.probeMetrics)
	}
	c := httpd.Config{Waiting: d.state.waiting, Metrics: registry, Logger: d.log}
	if d.options.ui {
		c.UI = d.startUI()
	}
	web, err := httpd.Listen(addr, c)
	if err == nil {
		d.log.Info("serving health and metrics", logging.KeyAddress, web.Addr())
	}
	return web, err
}

// startUI starts the page for browsers.
func (d *daemon) startUI() *webui.UI {
	host, err := os.Hostname()
	if err != nil {
		host = "this node"
	}
	ctx, cancel := context.WithCancel(context.Background())
	examiner := newExaminer(ctx, d.options.controlSocket)
	u := webui.New(webui.Config{
		Host: host, Document: d.state.document, Traffic: d.state.traffic, Examination: examiner.examination,
	})
	d.serving = append(d.serving, func() error { cancel(); u.Close(); return nil })
	return u
}
