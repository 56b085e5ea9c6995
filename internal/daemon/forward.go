package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/twillnet/twill/internal/logging"
	"github.com/twillnet/twill/lease"
)

// forward runs the open data plane of n and keeps its leases as store tells
// them, until ctx is done or one of the two fails. When it returns nothing of
// what it started runs any more.
func (d *daemon) forward(ctx context.Context, store lease.Store, n node, dp dataplane) error {
	ctx, cancel := context.WithCancel(ctx)
	updates := make(chan lease.Update)
	watch := start("watch leases", func() error { return store.Watch(ctx, updates) })
	defer await(watch)
	defer cancel()

	// Not a packet is forwarded before the peers are known: it would be
	// dropped, and counted as if something were wrong.
	d.state.waitFor("the first leases")
	f := follower{node: n, dp: dp, state: d.state}
	select {
	case <-ctx.Done():
		return nil
	case err := <-watch:
		return err
	case u := <-updates:
		f.apply(u)
	}
	run := start("data plane", func() error { return dp.Run(ctx) })
	defer await(run)
	defer cancel()
	if err := d.announce(n, dp.MTU()); err != nil {
		return err
	}

	var err error
	for err == nil {
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case err = <-run:
		case err = <-watch:
		case u := <-updates:
			f.apply(u)
		}
	}
	d.tellManager(notifyStopping)
	if ctx.Err() != nil {
		d.log.Info("stopping", logging.KeyWhy, context.Cause(ctx))
		return nil
	}
	return err
}

// announce tells all who wait for it that pods can talk: the CNI plugin, the
// service manager, whoever asks for readiness.
func (d *daemon) announce(n node, mtu int) error {
	env := lease.SubnetEnv{
		Network:     n.config.IPv4.Network,
		Subnet:      n.own.Subnet,
		IPv6Network: n.config.IPv6.Network,
		IPv6Subnet:  n.own.IPv6Subnet,
		MTU:         mtu,
	}
	if err := env.Write(d.options.subnetFile); err != nil {
		return err
	}
	d.state.waitFor("")
	d.tellManager(notifyReady)
	d.log.Info("ready", logging.KeyPath, d.options.subnetFile, logging.KeyMTU, mtu)
	return nil
}

// tellManager tells the service manager a state. That it does not listen is no
// reason to end; it will say itself what it misses.
func (d *daemon) tellManager(state string) {
	if err := notify(d.notifySocket, state); err != nil {
		d.log.Warn("service manager not told", logging.KeyError, err)
	}
}

// start runs f, which is to run until it is stopped. The channel gives the
// error with which f ended, also if that was a panic or no error at all, and
// is closed then.
func start(what string, f func() error) <-chan error {
	c := make(chan error, 1)
	go func() {
		defer close(c)
		defer func() {
			if p := recover(); p != nil {
				c <- fmt.Errorf("%s: panic: %v", what, p)
			}
		}()
		err := f()
		if err == nil {
			err = errors.New("ended by itself")
		}
		c <- fmt.Errorf("%s: %w", what, err)
	}()
	return c
}

// await waits until what start started has ended.
func await(c <-chan error) {
	for range c {
	}
}
