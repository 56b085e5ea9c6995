package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/twillnet/twill/internal/daemon/embedetcd"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/metrics"
)

// defaultState is the state directory if systemd does not provide one.
const defaultState = "/var/lib/twill"

// embeddedEtcd is the etcd that runs in the daemon. It is a flag value: "true",
// "false" or the directory. The flag may be given without a value.
type embeddedEtcd struct {
	on        bool
	dir       string // empty: the state directory
	listen    listenAddr
	plaintext bool
}

// String implements flag.Value.
func (e *embeddedEtcd) String() string {
	if e.on && e.dir != "" {
		return e.dir
	}
	return fmt.Sprint(e.on)
}

// Set implements flag.Value.
func (e *embeddedEtcd) Set(v string) error {
	switch v {
	case "true", "false":
		e.on, e.dir = v == "true", ""
	case "":
		return fmt.Errorf("want the name of a directory")
	default:
		e.on, e.dir = true, v
	}
	return nil
}

// IsBoolFlag implements the optional method of flag.Value: the value may be omitted.
func (*embeddedEtcd) IsBoolFlag() bool { return true }

// listenAddr is the address on which the etcd serves other nodes. With the zero
// value it serves none.
type listenAddr struct{ netip.AddrPort }

// String implements flag.Value.
func (a *listenAddr) String() string {
	if !a.IsValid() {
		return ""
	}
	return a.AddrPort.String()
}

// Set implements flag.Value.
func (a *listenAddr) Set(v string) (err error) {
	a.AddrPort, err = embedetcd.ParseListen(v)
	return err
}

// check finds errors that do not depend on the host.
func (e *embeddedEtcd) check() error {
	switch {
	case e.on && !embedetcd.Built:
		return usagef("--embedded-etcd: this program was built without it (make build-lite); use the full build, or run an etcd and name it with --etcd-endpoints")
	case !e.on && e.listen.IsValid():
		return usagef("--embedded-etcd-listen: it has no effect without --embedded-etcd; set both")
	case e.listen.IsValid() && e.listen.Addr().IsUnspecified() && !e.plaintext:
		return usagef("--embedded-etcd-listen=%s: a certificate needs an address: name the one at which other nodes reach this one", e.listen)
	}
	return nil
}

// settle chooses the directory if none was named: the one that systemd created
// for the service (StateDirectory=) and named in the environment, else the
// default.
func (e *embeddedEtcd) settle(env environment) {
	if e.dir != "" {
		return
	}
	state, _, _ := strings.Cut(env["STATE_DIRECTORY"], ":")
	if state == "" {
		state = defaultState
	}
	e.dir = filepath.Join(state, "etcd")
}

func (e *embeddedEtcd) endpoint() string { return embedetcd.Endpoint(e.listen.AddrPort) }

// runningEtcd is the etcd while the daemon uses it.
type runningEtcd struct {
	server *embedetcd.Server
	ctx    context.Context // for its users; done if the etcd ends by itself
	end    context.CancelCauseFunc
}

// embeddedEnded is the cause with which ctx of a runningEtcd was canceled.
type embeddedEnded struct{ err error }

func (e *embeddedEnded) Error() string { return fmt.Sprintf("embedded etcd stopped: %v", e.err) }
func (e *embeddedEnded) Unwrap() error { return e.err }

// startEmbedded starts the etcd in the daemon and waits until it answers.
func (d *daemon) startEmbedded(ctx context.Context) (*runningEtcd, error) {
	o := &d.options.embedded
	d.state.waitFor(metrics.WaitStore, "the embedded etcd")
	server, err := embedetcd.Start(ctx, embedetcd.Config{Dir: o.dir, Listen: o.listen.AddrPort, Plaintext: o.plaintext, Logger: d.log})
	if err != nil {
		return nil, err
	}
	d.log.Info("embedded etcd started", logging.KeyPath, o.dir, logging.KeyEndpoints, o.endpoint())
	if o.listen.IsValid() && !o.listen.Addr().IsLoopback() {
		if o.plaintext {
			d.log.Warn("embedded etcd accepts every host without encryption", logging.KeyAddress, o.listen.AddrPort,
				logging.KeyRemedy, "start twilld without --embedded-etcd-plaintext, or allow only the other nodes to reach this port")
		} else {
			d.log.Info("embedded etcd accepts invited nodes", logging.KeyAddress, o.listen.AddrPort,
				logging.KeyRemedy, "run \"twill invite\" here and \"twill join\" on each of the others")
		}
	}
	e := &runningEtcd{server: server}
	e.ctx, e.end = context.WithCancelCause(ctx)
	go func() {
		select {
		case err := <-server.Failed():
			e.end(&embeddedEnded{err})
		case <-e.ctx.Done():
		}
	}()
	return e, nil
}

// close stops the etcd and returns the error of the daemon: err, or that the
// etcd ended by itself.
func (e *runningEtcd) close(err error) error {
	e.end(nil)
	e.server.Close()
	if cause, ok := context.Cause(e.ctx).(*embeddedEnded); ok {
		return cause
	}
	return err
}
