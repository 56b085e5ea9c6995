package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/internal/host/rules"
	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/lastknown"
)

// cleanUp removes what runs of twilld and of stock flannel have left on this
// host, by name, and nothing else (flannel#886). It logs each thing that it has
// removed. A lease in etcd stays until it expires, and the data of an embedded
// etcd stays altogether: other nodes live by it.
//
// It goes on where something cannot be removed, and returns all errors.
func (d *daemon) cleanUp(ctx context.Context) (err error) {
	socketLeft := exists(d.options.controlSocket)
	// Keeps a daemon from starting meanwhile, finds one that runs, and takes the
	// place of a socket that was left.
	control, err := status.Listen(d.options.controlSocket, d.state.document, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	device, err := leftDevice(d.options.tunName)
	if err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	if socketLeft {
		d.log.Info("control socket removed", logging.KeyPath, d.options.controlSocket)
	}
	var errs []error
	if device != nil {
		errs = append(errs, d.removeDevice(device))
	}
	errs = append(errs, d.removeVXLAN(), d.removeRoutes(), lastknown.Remove(d.options.leasesFile()))
	env, err := lease.ReadSubnetEnv(d.options.subnetFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, rules.Cleanup(ctx, d.log))
	for _, subnet := range (lease.Lease{Subnet: env.Subnet, IPv6Subnet: env.IPv6Subnet}).Subnets() {
		n, err := removeBlackholes(subnet)
		errs = append(errs, err)
		if n > 0 {
			d.log.Info("blackhole route removed", logging.KeySubnet, subnet)
		}
	}
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

// removeVXLAN deletes the VXLAN devices of flannel's names, whatever their VNI.
func (d *daemon) removeVXLAN() error {
	names, err := vxlan.Left()
	errs := []error{err}
	for _, name := range names {
		err := vxlan.Remove(name)
		if errs = append(errs, err); err == nil {
			d.log.Info("device and its routes removed", logging.KeyDevice, name)
		}
	}
	return errors.Join(errs...)
}

// removeRoutes deletes the plain routes to peers.
func (d *daemon) removeRoutes() error {
	removed, err := backend.RemoveRoutes(d.options.routesFile(), d.log)
	for _, r := range removed {
		d.log.Info("route removed", logging.KeyRoute, r)
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
