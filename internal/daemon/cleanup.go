package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/internal/rules"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
)

// cleanUp removes what runs of twilld and of stock flannel have left on this
// host, by name, and nothing else (flannel#886). The device and its routes have
// gone with the process. A lease in etcd stays until it expires.
//
// It goes on where something cannot be removed, and returns all errors.
func (d *daemon) cleanUp(ctx context.Context) (err error) {
	// Keeps a daemon from starting meanwhile, finds one that runs, and takes the
	// place of a socket that was left.
	control, err := status.Listen(d.options.controlSocket, d.state.document)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, control.Close()) }()
	if err := checkUnused(d.options.tunName); err != nil {
		return err
	}
	var errs []error
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
	errs = append(errs, lease.RemoveSubnetEnv(d.options.subnetFile))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	d.log.Info("cleaned up")
	return nil
}

// checkUnused refuses to take the rules and routes away from under a daemon that
// has the TUN device open.
func checkUnused(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look up interface %s: %w", name, err)
	}
	if t, ok := link.(*netlink.Tuntap); ok && t.NonPersist {
		return fmt.Errorf("clean up: interface %s is open: stop the flanneld or twilld that runs on this host first", name)
	}
	return nil
}
