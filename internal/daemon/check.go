package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/backend"
	"github.com/twillnet/twill/internal/backend/udp"
)

// checkTimeout bounds the wait for the lease store with --check.
const checkTimeout = 15 * time.Second

// errCheck results in exit code 1. The faults have been printed.
var errCheck = errors.New("twilld would not start with this command line, see above")

// check reports on w whether a daemon with these options could start: store, network
// configuration, backends, interface. It acquires no lease and leaves nothing on the
// host; it briefly creates a VXLAN device if the configuration may require one.
func (d *daemon) check(ctx context.Context, w io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %s", checkTimeout))
	defer cancel()
	d.log = slog.New(slog.DiscardHandler) // faults are printed instead
	step := func(name string, result string, failed error) error {
		if failed != nil {
			if ctx.Err() != nil {
				failed = fmt.Errorf("%w (%w)", failed, context.Cause(ctx))
			}
			fmt.Fprintf(w, "bad  %-9s %s\n", name, strings.ReplaceAll(failed.Error(), "\n", "; "))
			return errCheck
		}
		fmt.Fprintf(w, "ok   %-9s %s\n", name, result)
		return nil
	}
	for _, f := range d.options.ignored {
		fmt.Fprintf(w, "warn %-9s %s is ignored: %s\n", "flags", f.setting, f.reason)
	}
	if d.options.kernelPath != udp.KernelPathOff {
		why, err := d.options.kernelPath.Probe(ctx)
		if why != nil && err == nil {
			fmt.Fprintf(w, "warn %-9s unavailable: %s\n", backend.KernelPathFlag, strings.ReplaceAll(why.Error(), "\n", "; "))
		} else if err := step(backend.KernelPathFlag, "the self-test passed", err); err != nil {
			return err
		}
	}
	if d.options.embedded.on && d.options.leaseFile == "" {
		fmt.Fprintf(w, "warn %-9s the embedded etcd runs only inside the daemon: config and interface are not checked\n", "store")
		return nil
	}
	store, err := d.openStore(ctx)
	if err != nil {
		return step("store", "", err)
	}
	defer func() { err = errors.Join(err, store.close()) }()
	s := d.newSession(store)
	if s.in.latest, err = store.Config(ctx); err != nil {
		return step("config", "", fmt.Errorf("%s: %w", d.options.source(), err))
	}
	err = s.adopt(true)
	if err := step("config", fmt.Sprintf("%s of %s", s.in.latest.Networks(), d.options.source()), err); err != nil {
		return err
	}
	_, choice, err := s.in.backends()
	if err := step("backends", fmt.Sprintf("%s: %s", choice.Kinds, choice.Why), err); err != nil {
		return err
	}
	s.in.link, err = s.chooseLink(s.in.config)
	return step("interface", fmt.Sprintf("%s: %s", s.in.link, s.in.link.Why), err)
}
