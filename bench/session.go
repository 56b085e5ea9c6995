package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/twillnet/twill/bench/report"
	"github.com/twillnet/twill/internal/lab/netlab"
)

// Measure puts the loads on every path of a wire, round after round, then on
// the next wire, and reports progress to w. Paths that cannot be set up and
// runs that fail are recorded in the report. When ctx ends, the report holds the
// rounds that were finished by then, and the error is the context's cause. The
// report is nil if nothing could be run. It needs root.
func Measure(ctx context.Context, opts Options, w io.Writer) (*report.Report, error) {
	if err := needRoot("the laboratory"); err != nil {
		return nil, err
	}
	s, err := newSession(opts, w)
	if err != nil {
		return nil, err
	}
	fmt.Fprintln(w, s.opts.String())
	if warning := s.report.Warning(); warning != "" {
		fmt.Fprintln(w, warning)
	}
	err = s.run(ctx)
	if s.runs == 0 {
		return nil, err
	}
	return s.report, errors.Join(err, s.finish())
}

// session is the state of a running Measure.
type session struct {
	opts     Options
	report   *report.Report
	progress *progress
	stolen   stolenMeter
	up       []standing
	runs     int                      // number done so far
	took     map[string]time.Duration // duration of the last run of each load, by its name
}

// standing is a path that was set up.
type standing struct {
	Path
	conn *Connection
}

func newSession(opts Options, w io.Writer) (*session, error) {
	if opts.MTU == 0 {
		opts.MTU = 1500
	}
	s := &session{opts: opts, progress: newProgress(w), took: make(map[string]time.Duration)}
	s.report = &report.Report{
		Schema: report.Schema, Started: time.Now(), Command: os.Args, Machine: thisMachine(),
		MTU: opts.MTU, Seconds: opts.Duration.Seconds(), Rounds: opts.Rounds,
	}
	s.report.Revision, s.report.Go = thisBuild()
	for _, l := range opts.loads() {
		s.report.Loads = append(s.report.Loads, report.Named{Name: l.Name, Title: l.Title})
	}
	var err error
	if s.report.Busy.UsedPercent, err = usedBefore(); err != nil {
		return nil, err
	}
	if s.report.Busy.LoadAtStart, err = loadAverage(); err != nil {
		return nil, err
	}
	s.stolen, err = startStolenMeter()
	return s, err
}

// finish completes the report.
func (s *session) finish() (err error) {
	s.report.Ended = time.Now()
	if s.report.Busy.LoadAtEnd, err = loadAverage(); err != nil {
		return err
	}
	s.report.Busy.StolenPercent, err = s.stolen.percent()
	return err
}

// run executes the whole plan, one wire after the other. It fails if ctx
// ends, or if no path could be set up on some wire.
func (s *session) run(ctx context.Context) error {
	var errs []error
	for i, w := range s.opts.Wires {
		err := s.setUp(ctx, w)
		if err == nil {
			err = s.measure(ctx, w, s.opts.Wires[i+1:])
		}
		errs = append(errs, err, s.takeDown())
		if ctx.Err() != nil {
			s.report.Interrupted = true
			break
		}
	}
	return errors.Join(errs...)
}

// setUp sets up all paths on a wire. It fails only if none can be set up or ctx
// ends.
func (s *session) setUp(ctx context.Context, w Wire) error {
	defer s.progress.clear()
	found := &report.Wire{Named: report.Named{Name: w.Name, Title: w.Title}}
	s.report.Wires = append(s.report.Wires, found)
	var failures []error
	for _, p := range s.opts.Paths {
		s.progress.show(fmt.Sprintf("wire %s: setting up %s", w.Name, p.Title))
		c, err := p.Up(ctx, netlab.Options{Wire: w.kind, Loss: w.loss, MTU: s.opts.MTU}, s.opts.Binaries)
		if c != nil {
			s.up = append(s.up, standing{p, c})
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entry := report.Path{Named: report.Named{Name: p.Name, Title: p.Title}}
		if err != nil {
			failures = append(failures, err)
			entry.Error = err.Error()
		} else {
			entry.MTU = c.MTU
		}
		found.Paths = append(found.Paths, entry)
	}
	if len(s.up) == 0 {
		return fmt.Errorf("wire %s: no path could be set up: %w", w.Name, errors.Join(failures...))
	}
	return nil
}

// measure does all runs on the current wire. It fails only if ctx ends. later are the
// wires that follow, which are included in the remaining time.
func (s *session) measure(ctx context.Context, w Wire, later []Wire) error {
	defer s.progress.clear()
	found := s.report.Wires[len(s.report.Wires)-1]
	var paths []Path
	for _, p := range s.up {
		paths = append(paths, p.Path)
	}
	steps := s.opts.schedule(w, paths)
	for i, step := range steps {
		s.progress.show(fmt.Sprintf("wire %s, round %d of %d, run %d of %d: %s over %s; %s left", w.Name,
			step.round, s.opts.Rounds, i+1, len(steps), step.load.Title, step.path.Title, minutes(s.left(steps[i:], later))))
		standing, _ := find(s.up, step.path.Name, func(s standing) string { return s.Name })
		started := time.Now()
		figures, err := step.load.run(ctx, standing.conn, s.opts.Duration)
		if ctx.Err() != nil {
			found.KeepFinishedRounds()
			return context.Cause(ctx)
		}
		s.took[step.load.Name] = time.Since(started)
		r := report.Run{Round: step.round, Path: step.path.Name, Load: step.load.Name, Figures: figures}
		if err != nil {
			r.Error = err.Error()
		}
		s.runs++
		found.Runs = append(found.Runs, r)
		if i+1 == len(steps) || steps[i+1].round > step.round {
			found.Rounds = step.round
		}
	}
	return nil
}

// left estimates how long steps and later wires will take, based on how long their loads
// have taken before.
func (s *session) left(steps []step, later []Wire) (left time.Duration) {
	for _, w := range later {
		left += time.Duration(len(s.opts.Paths)) * setUpTime
		steps = append(steps[:len(steps):len(steps)], s.opts.schedule(w, s.opts.Paths)...)
	}
	for _, step := range steps {
		took, ok := s.took[step.load.Name]
		if !ok {
			took = step.load.took(s.opts.Duration)
		}
		left += took
	}
	return left
}

// takeDown removes all paths.
func (s *session) takeDown() error {
	var errs []error
	for _, p := range s.up {
		errs = append(errs, p.conn.Close())
	}
	s.up = nil
	return errors.Join(errs...)
}
