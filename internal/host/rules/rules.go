package rules

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/twillnet/twill/internal/logging"
)

// Config is what New needs.
type Config struct {
	Wanted Wanted
	// Resync is how often Run looks whether the rules are still there; more
	// than 0: --iptables-resync.
	Resync time.Duration
	Logger *slog.Logger
}

// Rules keeps the rules of one host. Its methods may be called from several
// goroutines. There is nothing to close: the rules stay, so that pods go on
// talking while the daemon is down, until Cleanup.
type Rules struct {
	resync time.Duration
	log    *slog.Logger
	host   host
	wake   chan struct{} // that Set was called; holds one

	mu     sync.Mutex // guards what follows
	wanted Wanted
	status Status

	// work is held while rules are compared and written, and guards what
	// follows.
	work  sync.Mutex
	tools map[toolKey]tool // those that have worked
	swept *Wanted          // for which nothing else is left; nil: none
}

type toolKey struct {
	family   *family
	nftables bool
}

// Status is what became of the rules.
type Status struct {
	Wanted  Wanted
	Mended  int       // how often a write was needed
	Checked time.Time // when all was last as wanted; zero: never
	Problem error     // of the last attempt; nil: all is as wanted
}

// New returns rules that are not made yet. The error says what is wrong with
// cfg.
func New(cfg Config) (*Rules, error) {
	w, err := cfg.Wanted.normal()
	if err != nil {
		return nil, err
	}
	if cfg.Resync <= 0 {
		return nil, fmt.Errorf("firewall rules: resync every %s; want more than 0", cfg.Resync)
	}
	return &Rules{
		resync: cfg.Resync,
		log:    cfg.Logger,
		host:   thisHost,
		wake:   make(chan struct{}, 1),
		wanted: w,
		status: Status{Wanted: w},
		tools:  make(map[toolKey]tool),
	}, nil
}

// Set changes what is wanted, from the next Apply on; Run applies it at once.
// If w is in error nothing changes.
func (r *Rules) Set(w Wanted) error {
	w, err := w.normal()
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.wanted, r.status.Wanted = w, w
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default: // Run has not looked yet
	}
	return nil
}

// Status returns what became of the rules.
func (r *Rules) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Run applies the rules at once, with every Set and every resync period, until
// ctx is done, whose error it returns. That rules cannot be kept is logged, once
// for each reason, and tried again.
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
			r.log.Error("firewall rules not kept", logging.KeyError, err)
		case err == nil && trouble != "":
			trouble = ""
			r.log.Info("firewall rules kept again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		case <-ticks.C:
		}
	}
}

// Apply makes the rules as they are wanted. It writes nothing if they are so
// already. A family that fails does not keep the other from its rules.
//
// The first Apply, and the first after what is wanted has changed, also removes
// what else there is of flannel's, whichever tool made it, once the wanted rules
// stand. If another daemon serves another network on this host, its next resync
// puts its rules back, and from then on they are left where they are.
func (r *Rules) Apply(ctx context.Context) error {
	r.work.Lock()
	defer r.work.Unlock()
	r.mu.Lock()
	w := r.wanted
	r.mu.Unlock()

	mended, err := r.apply(ctx, w)
	if err == nil && (r.swept == nil || *r.swept != w) {
		r.sweep(ctx, w)
		if ctx.Err() == nil {
			r.swept = &w
		}
	}

	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Mended += mended
	switch {
	case err == nil:
		r.status.Problem, r.status.Checked = nil, time.Now()
	case ctx.Err() == nil: // else nothing is known
		r.status.Problem = err
	}
	return err
}

func (r *Rules) apply(ctx context.Context, w Wanted) (mended int, err error) {
	var errs []error
	for _, f := range families {
		if w.of(f) == (Pods{}) {
			continue
		}
		n, err := r.applyTo(ctx, w, f)
		mended += n
		if err != nil {
			errs = append(errs, fmt.Errorf("%s rules: %w", f.name, r.host.explain(f, err)))
		}
	}
	return mended, errors.Join(errs...)
}

func (r *Rules) applyTo(ctx context.Context, w Wanted, f *family) (mended int, err error) {
	key := toolKey{f, w.NFTables}
	t, ok := r.tools[key]
	if !ok {
		if t, err = r.host.open(f, w.NFTables); err != nil {
			return 0, err
		}
		r.tools[key] = t
	}
	want, err := targetOf(ctx, w, f, t, false)
	if err == nil {
		mended, err = r.reconcile(ctx, t, want)
	}
	if err != nil {
		// It may have been replaced by another version.
		delete(r.tools, key)
	}
	return mended, err
}

// targetOf returns the target of a tool that makes the wanted rules.
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

// attempts is how often reconcile writes before it gives up: others write to
// the same tables, and what they change between reading and writing makes a
// transaction fail.
const attempts = 4

// reconcile writes until what is there is what is wanted.
func (r *Rules) reconcile(ctx context.Context, t tool, want target) (mended int, err error) {
	var failed error
	for range attempts {
		drifts, err := t.drifts(ctx, want)
		if err != nil {
			return mended, err
		}
		if len(drifts) == 0 {
			return mended, nil
		}
		failed = fmt.Errorf("%s: still after writing it", drifts[0].what[0])
		for _, d := range drifts {
			if err := d.mend(ctx); err != nil {
				failed = err
				continue
			}
			mended++
			r.log.Info("firewall rules written", logging.KeyWhy, d.what)
		}
		if ctx.Err() != nil {
			return mended, ctx.Err()
		}
	}
	return mended, failed
}

// sweep removes what any tool of the host has of flannel's and is not wanted.
// What it cannot remove does not harm the wanted rules, so it is logged and left.
func (r *Rules) sweep(ctx context.Context, w Wanted) {
	for _, f := range families {
		for _, t := range r.host.tools(f) {
			want, err := nothing(), error(nil)
			if makes(t, f, w.NFTables) {
				want, err = targetOf(ctx, w, f, t, true)
			}
			if err == nil {
				_, err = r.reconcile(ctx, t, want)
			}
			if err != nil && ctx.Err() == nil && !kernelLacks(err) {
				r.log.Warn("firewall rules of an earlier configuration may be left",
					logging.KeyError, r.host.explain(f, err))
			}
		}
	}
}

// makes says whether t is the tool that host.open chooses.
func makes(t tool, f *family, nftables bool) bool {
	ipt, ok := t.(*iptables)
	if nftables {
		return !ok
	}
	return ok && ipt.program == f.iptables
}

// Differences says in words what is not as wanted. It writes nothing.
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
	t, err := r.host.open(f, w.NFTables)
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
