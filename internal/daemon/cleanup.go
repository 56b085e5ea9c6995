package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/twillnet/twill/internal/backend/dataplane"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/lastknown"
)

// cleanUp removes what runs of twilld and of stock flannel have left on this
// host, by name, and nothing else (flannel#886). It logs each object that it
// removes. A lease in etcd stays until it expires, and the data of an embedded
// etcd is kept, since other nodes depend on it.
//
// It continues if something cannot be removed, and returns all errors.
func (d *daemon) cleanUp(ctx context.Context) (err error) {
	socketLeft := exists(d.options.controlSocket)
	// Listening keeps a daemon from starting meanwhile, detects a running one, and
	// replaces a stale socket.
	control, err := status.Listen(d.options.controlSocket, d.state.document, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	env, unread := lease.ReadSubnetEnv(d.options.subnetFile)
	if errors.Is(unread, fs.ErrNotExist) {
		unread = nil
	}
	left := dataplane.Clean(d.options.tunName, status.Valid(env.Network, env.IPv6Network), status.Valid(env.Subnet, env.IPv6Subnet), d.options.routesFile(), d.log)
	if errors.Is(left, dataplane.ErrInUse) {
		return fmt.Errorf("clean up: %w", left)
	}
	if socketLeft {
		d.log.Info("control socket removed", logging.KeyPath, d.options.controlSocket)
	}
	errs := []error{unread, left, lastknown.Remove(d.options.leasesFile()), rules.Cleanup(ctx, d.log)}
	fileLeft := exists(d.options.subnetFile)
	err = lease.RemoveSubnetEnv(d.options.subnetFile)
	if errs = append(errs, err); err == nil && fileLeft {
		d.log.Info("subnet file removed", logging.KeyPath, d.options.subnetFile)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	d.log.Info("cleaned up")
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
