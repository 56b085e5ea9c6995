package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/static"
)

// source is where leases come from, as it stands in the status.
func (o *options) source() string {
	if o.leaseFile != "" {
		return "file " + o.leaseFile
	}
	kind := "etcd "
	if o.embedded.on {
		kind = "embedded etcd "
	}
	return kind + strings.Join(o.etcd.Endpoints, ", ") + " " + o.etcd.Prefix
}

// settings is where files and store are, as it stands in the status.
func (o *options) settings() *status.Settings {
	absolute := func(path string) string {
		if path == "" {
			return ""
		}
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
		return path // the working directory is gone
	}
	s := &status.Settings{SubnetFile: absolute(o.subnetFile), LeaseFile: absolute(o.leaseFile)}
	if o.leaseFile == "" {
		s.Endpoints, s.Prefix = o.etcd.Endpoints, o.etcd.Prefix
		s.CAFile, s.CertFile, s.KeyFile = absolute(o.etcd.CAFile), absolute(o.etcd.CertFile), absolute(o.etcd.KeyFile)
	}
	return s
}

// openStore opens the store of leases that the options name. close ends its
// connections.
func (d *daemon) openStore(ctx context.Context) (store lease.Store, close func() error, err error) {
	if d.options.leaseFile != "" {
		d.state.waitFor("the lease file")
		s, err := static.Open(d.options.leaseFile, d.log)
		return s, func() error { return nil }, err
	}
	d.state.waitFor("etcd")
	d.reacquires = true
	o := d.options.etcd
	o.Logger = d.log
	s, err := etcd.Open(ctx, o)
	if err != nil {
		return nil, nil, err // not s, which would be a non-nil interface
	}
	return s, s.Close, nil
}

// configWaiter is a store whose network configuration is somebody else's, for
// whom a node waits.
type configWaiter interface {
	// WaitConfig returns the network configuration when there is a good one.
	// Before that it calls told with what is wrong, once for each version.
	WaitConfig(ctx context.Context, told func(error)) (*lease.Config, error)
}

// config makes n a node of the network as the store has it. What is wrong with it ends a daemon that reads it from a file, next to
// which it runs; where others write it for all nodes, it is waited for.
func (d *daemon) config(ctx context.Context, store lease.Store, n *node) error {
	w, waits := store.(configWaiter)
	if !waits {
		c, err := store.Config(ctx)
		if err != nil {
			return err
		}
		return d.plan(n, c)
	}
	var refused string
	told := func(err error) {
		if err.Error() != refused {
			refused = err.Error()
			d.refuseConfig(err)
		}
	}
	for {
		c, err := w.WaitConfig(ctx, told)
		if err != nil {
			return err
		}
		if err = d.plan(n, c); err == nil {
			if refused != "" {
				d.log.Info("network configuration good now")
			}
			d.state.change(func(doc *status.Document) { doc.Source.LastError, doc.Source.LastErrorAt = "", time.Time{} })
			return nil
		}
		told(err)
		select {
		case <-time.After(retryAfter):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *daemon) refuseConfig(err error) {
	d.log.Error("network configuration refused, waiting for a sound one", logging.KeyError, err)
	d.state.change(func(doc *status.Document) {
		doc.Waiting = "a sound network configuration: " + err.Error()
		doc.Source.LastError, doc.Source.LastErrorAt = err.Error(), time.Now()
	})
	d.tellManager(statusLine("a sound network configuration: " + err.Error()))
}

// configFault says whether the network configuration itself is what err is
// about.
func configFault(err error) bool {
	var (
		syntax *lease.SyntaxError
		config *lease.ConfigError
		ours   *settingsError
	)
	return errors.As(err, &syntax) || errors.As(err, &config) || errors.As(err, &ours) || errors.Is(err, etcd.ErrNoConfig)
}
