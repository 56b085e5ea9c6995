package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/twillnet/twill/internal/netlab"
)

// Options say what a session of the laboratory does.
type Options struct {
	Paths    []Path
	Loads    []Load
	Wire     netlab.WireKind // Super if empty
	MTU      int             // of the wire, 1500 if zero
	Rounds   int
	Duration time.Duration // of each run
	Binaries Binaries
}

// Measure puts every load on every path, round after round, and reports progress
// to w. A path that cannot be made, and a run that fails, are noted in the
// report. When ctx ends, the report holds what had been done by then, and the
// error is the context's cause. The report is nil if nothing could be run. It
// needs root.
func Measure(ctx context.Context, opts Options, w io.Writer) (report *Report, err error) {
	if err := needRoot("the laboratory"); err != nil {
		return nil, err
	}
	s := newSession(opts, w)
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.setUp(ctx); err != nil {
		return nil, err
	}
	return s.report, s.run(ctx)
}

// session is a Measure under way.
type session struct {
	opts     Options
	report   *Report
	progress *progress
	up       []standing
	took     map[string]time.Duration // by the last run of a load, by its name
}

// standing is a path that could be made.
type standing struct {
	Path
	conn *Connection
}

func newSession(opts Options, w io.Writer) *session {
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	if opts.Wire == "" {
		opts.Wire = netlab.Super
	}
	return &session{
		opts: opts,
		report: &Report{
			Started: time.Now(), Command: os.Args, Machine: thisMachine(),
			Wire: opts.Wire, WireMTU: opts.MTU, Seconds: opts.Duration.Seconds(), Rounds: opts.Rounds,
		},
		progress: newProgress(w),
		took:     make(map[string]time.Duration),
	}
}

// setUp makes all paths. It fails only if none can be made or ctx ends.
func (s *session) setUp(ctx context.Context) error {
	defer s.progress.clear()
	var failures []error
	for _, p := range s.opts.Paths {
		s.progress.show("setting up " + p.Title)
		c, err := p.Up(ctx, netlab.Options{Wire: s.opts.Wire, MTU: s.opts.MTU}, s.opts.Binaries)
		if ctx.Err() != nil {
			if c != nil {
				err = c.Close()
			}
			return errors.Join(context.Cause(ctx), err)
		}
		if err != nil {
			failures = append(failures, err)
			s.report.Paths = append(s.report.Paths, PathReport{Name: p.Name, Error: err.Error()})
			continue
		}
		s.up = append(s.up, standing{p, c})
		s.report.Paths = append(s.report.Paths, PathReport{Name: p.Name, MTU: c.MTU})
	}
	if len(s.up) == 0 {
		return fmt.Errorf("no path could be made: %w", errors.Join(failures...))
	}
	return nil
}

// step is one run to be done.
type step struct {
	round int // from 1
	load  Load
	path  standing
}

// schedule is all runs in their order. Each round begins with another path, so
// that none always runs in another's wake.
func (s *session) schedule() []step {
	var steps []step
	for round := range s.opts.Rounds {
		for _, load := range s.opts.Loads {
			for i := range s.up {
				steps = append(steps, step{round + 1, load, s.up[(i+round)%len(s.up)]})
			}
		}
	}
	return steps
}

// run does all runs. It fails only when ctx ends.
func (s *session) run(ctx context.Context) error {
	defer s.progress.clear()
	steps := s.schedule()
	for i, step := range steps {
		s.progress.show(fmt.Sprintf("[%d/%d] %s over %s, round %d of %d, %d s left", i+1, len(steps),
			step.load.Title, step.path.Title, step.round, s.opts.Rounds, int(s.left(steps[i:]).Seconds()+0.5)))
		started := time.Now()
		figures, err := step.load.run(ctx, step.path.conn, s.opts.Duration)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.took[step.load.Name] = time.Since(started)
		r := Run{Round: step.round, Path: step.path.Name, Load: step.load.Name, Figures: figures}
		if err != nil {
			r.Error = err.Error()
		}
		s.report.Runs = append(s.report.Runs, r)
	}
	return nil
}

// left is how long steps will take, by what their loads took before.
func (s *session) left(steps []step) (left time.Duration) {
	for _, step := range steps {
		took, ok := s.took[step.load.Name]
		if !ok {
			took = s.opts.Duration + warmUp
		}
		left += took
	}
	return left
}

// close takes down all paths.
func (s *session) close() error {
	var errs []error
	for _, p := range s.up {
		errs = append(errs, p.conn.Close())
	}
	return errors.Join(errs...)
}

// AllPaths lists the names of all paths as ParsePaths reads them.
func AllPaths() string { return list(Paths, Path.name) }

// AllLoads lists the names of all loads as ParseLoads reads them.
func AllLoads() string { return list(Loads, Load.name) }

// ParsePaths finds paths by a list of names with commas between them.
func ParsePaths(names string) ([]Path, error) { return parse("path", names, Paths, Path.name) }

// ParseLoads finds loads by a list of names with commas between them.
func ParseLoads(names string) ([]Load, error) { return parse("load", names, Loads, Load.name) }

func (p Path) name() string { return p.Name }
func (l Load) name() string { return l.Name }

func list[T any](all []T, name func(T) string) string {
	var names []string
	for _, item := range all {
		names = append(names, name(item))
	}
	return strings.Join(names, ",")
}

func parse[T any](kind, names string, all []T, name func(T) string) ([]T, error) {
	var found []T
	for n := range strings.SplitSeq(names, ",") {
		item, ok := find(all, n, name)
		if !ok {
			return nil, fmt.Errorf("unknown %s %q; there are %s", kind, n, list(all, name))
		}
		found = append(found, item)
	}
	return found, nil
}

func find[T any](all []T, n string, name func(T) string) (item T, ok bool) {
	i := slices.IndexFunc(all, func(item T) bool { return name(item) == n })
	if i < 0 {
		return item, false
	}
	return all[i], true
}
