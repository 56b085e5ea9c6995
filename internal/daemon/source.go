package daemon

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/static"
	"github.com/twillnet/twill/metrics"
)

// source names the lease store, as shown in the status.
func (o *options) source() string {
	if o.leaseFile != "" {
		return "file " + o.leaseFile
	}
	if o.kube.on {
		return o.kube.source()
	}
	kind := "etcd "
	if o.embedded.on {
		kind = "embedded etcd "
	}
	return kind + strings.Join(o.etcd.Endpoints, ", ") + " " + o.etcd.Prefix
}

// settings returns the locations of files and store, as shown in the status.
func (o *options) settings() *status.Settings {
	absolute := func(path string) string {
		if path == "" {
			return ""
		}
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
		return path // the working directory was removed
	}
	s := &status.Settings{SubnetFile: absolute(o.subnetFile), LeaseFile: absolute(o.leaseFile)}
	switch {
	case o.leaseFile != "":
	case o.kube.on:
		s.Kubernetes = &status.Kubernetes{
			APIURL: o.kube.APIURL, Kubeconfig: absolute(o.kube.Kubeconfig), Prefix: o.kube.Prefix, ConfigFile: absolute(o.kube.ConfigFile),
		}
	default:
		s.Endpoints, s.Prefix = o.etcd.Endpoints, o.etcd.Prefix
		s.Login = o.etcd.Username != ""
		s.CAFile, s.CertFile, s.KeyFile = absolute(o.etcd.CAFile), absolute(o.etcd.CertFile), absolute(o.etcd.KeyFile)
	}
	return s
}

// openedStore is a lease store and its properties.
type openedStore struct {
	lease.Store
	writable bool // see inputs
	// byAddress means that the store identifies nodes by their public address, so
	// that it cannot distinguish two hosts with the same address.
	byAddress bool
	close     func() error // closes its connections
}

// openStore opens the lease store that the options select.
func (d *daemon) openStore(ctx context.Context) (openedStore, error) {
	if d.options.leaseFile != "" {
		d.state.waitFor(metrics.WaitStore, "the lease file")
		s, err := static.Open(d.options.leaseFile, d.log)
		return openedStore{Store: s, close: func() error { return nil }}, err
	}
	if d.options.kube.on {
		s, err := d.openKube()
		return openedStore{Store: s, writable: true, close: func() error { return nil }}, err
	}
	d.state.waitFor(metrics.WaitStore, "etcd")
	o := d.options.etcd
	o.Logger = d.log
	s, err := etcd.Open(ctx, o)
	if err != nil {
		return openedStore{}, err
	}
	d.letRead(s)
	return openedStore{Store: d.withLastKnown(s), writable: true, byAddress: true, close: s.Close}, nil
}
