package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

// Config configures New.
type Config struct {
	Wanted Wanted
	// Resync is the interval at which Run checks the rules, greater than 0:
	// --iptables-resync.
	Resync time.Duration
	Logger *slog.Logger
}

// Rules maintains the rules of one host. Its methods are safe for concurrent
// use. It need not be closed: the rules stay until Cleanup, so that pods stay
// connected while the daemon is down.
type Rules struct {
	resync time.Duration
	log    *slog.Logger
	host   host
	wake   chan struct{} // wakes Run after Set; holds one

	mu     sync.Mutex // guards the fields below, up to work
	wanted Wanted
	status Status
	began  time.Time // start of the Apply in progress; zero: none

	// work is held while rules are compared and written, and guards the fields
	// below.
	work  sync.Mutex
	tools map[toolKey]tool // those that have worked
	swept *Wanted          // the rules for which all others were removed; nil: none
}

type toolKey struct {
	family   *family
	nftables bool
}

// Status is the state of the rules.
type Status struct {
	Wanted  Wanted
	Written int       // number of writes so far
	Checked time.Time // when the rules were last found correct; zero: never
	Problem error     // the failure of the last attempt; nil: the rules are correct
	// Missing describes what is not guarded because this host's kernel or tools do not
	// support the rules for it. It must not be changed.
	Missing []string
	// Unwritable lists interfaces of Guard.Underlay with names that the tool cannot write.
	// If there are any, forged sources are not detected.
	Unwritable []string
}

// New returns rules that have not been applied. The error describes what is
// invalid in cfg.
func New(cfg Config) (*Rules, error) {
	w, err := cfg.Wanted.normal()
	if err != nil {
		return nil, err
	}
	if cfg.Resync <= 0 {
		return nil, fmt.Errorf("firewall rules: resync interval is %s, want more than 0", cfg.Resync)
	}
	r := &Rules{
		resync: cfg.Resync,
		log:    cfg.Logger,
		host:   thisHost,
		wake:   make(chan struct{}, 1),
		tools:  make(map[toolKey]tool),
	}
	r.want(w)
	return r, nil
}

// want changes the wanted rules, and logs when names become unwritable. r.mu must be held
// if r is shared.
func (r *Rules) want(w Wanted) {
	names := w.unwritable()
	if len(names) > 0 && !slices.Equal(names, r.status.Unwritable) {
		r.log.Warn("firewall rules against forged sources are off: the tool cannot match these interfaces by name",
			logging.KeyInterface, fmt.Sprintf("%q", names), logging.KeyRemedy, unwritableRemedy)
	}
	r.wanted, r.status.Wanted, r.status.Unwritable = w, w, names
}

// unwritableRemedy is the remedy for names of interfaces in Status.Unwritable.
const unwritableRemedy = "rename them with 'ip link set dev NAME name NEW', or, for '+' at the end, set EnableNFTables in the network config"

// Set changes the wanted rules for the next Apply; Run applies them
// immediately. If w is invalid nothing changes.
func (r *Rules) Set(w Wanted) error {
	w, err := w.normal()
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.want(w)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // Run has not yet received the previous one
	}
	return nil
}

// Status returns the state of the rules.
func (r *Rules) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	if took := time.Since(r.began); !r.began.IsZero() && took > overdue && s.Problem == nil {
		s.Problem = fmt.Errorf("reading and writing the rules is overdue, after %s so far", took.Round(time.Second))
	}
	return s
}

// overdue is how long an Apply may take before Status reports a problem: longer
// than iptables waits for its lock, and longer than the rules of a large
// cluster take.
const overdue = 15 * time.Second

// Run applies the rules immediately, after every Set and after every resync
// period, until ctx is done, and returns its error. A failure is logged once
// for each cause and retried after the period.
func (r *Rules) Run(ctx context.Context) error {
	ticks := time.NewTicker(r.resync)
	defer ticks.Stop()
	trouble := ""
	for {
		err := r.Apply(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && err.Error() != trouble:
			trouble = err.Error()
			r.log.Error("cannot apply firewall rules, retrying", logging.KeyError, err)
		case err == nil && trouble != "":
			trouble = ""
			r.log.Info("firewall rules applied again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		case <-ticks.C:
		}
	}
}

// Apply writes the wanted rules. It writes nothing if they already exist. A
// failure in one family does not affect the other.
//
// Once the wanted rules exist, the first Apply, and the first after Set, also
// removes all other rules of flannel, whichever tool made them. If another
// daemon serves another network on this host, its next resync restores its
// rules, which are then left alone.
func (r *Rules) Apply(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	r.mu.Lock()
	w := r.wanted
	r.began = time.Now()
	r.mu.Unlock()

	written, err := r.apply(ctx, w)
	// The kinds of rules do not depend on the peers.
	kinds := w
	kinds.Guard.Peers = nil
	if err == nil && (r.swept == nil || !r.swept.Equal(kinds)) {
		r.sweep(ctx, w)
		if ctx.Err() == nil {
			r.swept = &kinds
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.began = time.Time{}
	r.status.Written += written
	switch {
	case err == nil:
		r.status.Problem, r.status.Checked = nil, time.Now()
	case ctx.Err() == nil: // otherwise the result is unknown
		r.status.Problem = err
	}
	return err
}

func (r *Rules) apply(ctx context.Context, w Wanted) (written int, err error) {
	var errs []error
	for _, f := range families {
		if w.of(f) == (Pods{}) {
			continue
		}
		n, err := r.applyTo(ctx, w, f)
		written += n
		if err != nil {
			errs = append(errs, fmt.Errorf("%s rules: %w", f.name, r.host.explain(f, err)))
		}
	}
	return written, errors.Join(errs...)
}

func (r *Rules) applyTo(ctx context.Context, w Wanted, f *family) (written int, err error) {
	key := toolKey{f, w.NFTables}
	t, ok := r.tools[key]
	if !ok {
		if t, err = r.host.open(ctx, f, w.NFTables); err != nil {
			return 0, err
		}
		r.tools[key] = t
	}
	want, err := targetOf(ctx, w, f, t, false)
	if err == nil {
		written, err = r.reconcile(ctx, t, want)
	}
	if err != nil {
		// Its program may have been replaced by another version.
		delete(r.tools, key)
	}
	return written, err
}

// targetOf returns the target of a tool that writes the wanted rules.
func targetOf(ctx context.Context, w Wanted, f *family, t tool, all bool) (target, error) {
	random := false
	if w.Masquerade && w.RandomFully && w.of(f) != (Pods{}) {
		var err error
		if random, err = t.randomFully(ctx); err != nil {
			return target{}, err
		}
	}
	return w.target(f, random, all), nil
}

// attempts is how often reconcile writes before it gives up: a transaction
// fails if the same tables are changed between reading and writing.
const attempts = 4

// reconcile writes until the existing rules are the wanted ones.
func (r *Rules) reconcile(ctx context.Context, t tool, want target) (written int, err error) {
	var failed error
	for range attempts {
		drifts, err := t.drifts(ctx, want)
		if err != nil {
			return written, err
		}
		if len(drifts) == 0 {
			return written, nil
		}
		failed = fmt.Errorf("%s, although the rules were just written: another program may be changing them", drifts[0].what[0])
		for _, d := range drifts {
			err := d.write(ctx)
			if without := (*dispensable)(nil); errors.As(err, &without) {
				r.doWithout(without)
				continue
			}
			if err != nil {
				failed = err
				continue
			}
			written++
			r.log.Info("firewall rules written", logging.KeyWhy, d.what)
		}
		if ctx.Err() != nil {
			return written, ctx.Err()
		}
	}
	return written, failed
}

// doWithout records rules that this host does not support, and logs them once.
func (r *Rules) doWithout(d *dispensable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.status.Missing, d.String()) {
		return
	}
	// Callers of Status may hold the old slice.
	r.status.Missing = append(slices.Clip(r.status.Missing), d.String())
	r.log.Warn("firewall rules not supported, continuing without them", logging.KeyWhy, d.String(), logging.KeyError, d.error)
}

// sweep removes unwanted rules of flannel made by any tool of the host.
// Failures do not affect the wanted rules, so they are only logged.
func (r *Rules) sweep(ctx context.Context, w Wanted) {
	for _, f := range families {
		for _, t := range r.host.tools(ctx, f) {
			want, err := nothing(), error(nil)
			if makes(t, f, w.NFTables) {
				want, err = targetOf(ctx, w, f, t, true)
			}
			if err == nil {
				_, err = r.reconcile(ctx, t, want)
			}
			if err != nil && ctx.Err() == nil && !kernelLacks(err) {
				r.log.Warn("cannot remove firewall rules of an earlier configuration",
					logging.KeyError, r.host.explain(f, err))
			}
		}
	}
}

// makes reports whether t is the tool that host.open chooses.
func makes(t tool, f *family, nftables bool) bool {
	ipt, ok := t.(*iptables)
	if nftables {
		return !ok
	}
	return ok && ipt.program == f.iptables
}

// Differences describes how the existing rules differ from the wanted ones. It writes
// nothing.
func (r *Rules) Differences(ctx context.Context) ([]string, error) {
	r.work.Lock()
	defer r.work.Unlock()
	r.mu.Lock()
	w := r.wanted
	r.mu.Unlock()
	var (
		all  []string
		errs []error
	)
	for _, f := range families {
		if w.of(f) == (Pods{}) {
			continue
		}
		what, err := r.differences(ctx, w, f)
		all = append(all, what...)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s rules: %w", f.name, r.host.explain(f, err)))
		}
	}
	return all, errors.Join(errs...)
}

func (r *Rules) differences(ctx context.Context, w Wanted, f *family) ([]string, error) {
	t, err := r.host.open(ctx, f, w.NFTables)
	if err != nil {
		return nil, err
	}
	want, err := targetOf(ctx, w, f, t, false)
	if err != nil {
		return nil, err
	}
	drifts, err := t.drifts(ctx, want)
	var what []string
	for _, d := range drifts {
		what = append(what, d.what...)
	}
	return what, err
}
