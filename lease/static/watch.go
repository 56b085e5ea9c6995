package static

import (
	"context"
	"time"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/filewatch"
)

// Watch sends the last valid version as a snapshot and then the changes of the
// file: an update with the difference for each valid version; one with Err, an
// *Error or the error of the file system, for each text that is refused; an
// empty update when the text in force is restored after a refused one.
func (s *Store) Watch(ctx context.Context, updates chan<- lease.Update) error {
	send := func(u lease.Update) error {
		select {
		case updates <- u:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f := newFollower(s.path, s.current.Load())
	if err := send(f.snapshot()); err != nil {
		return err
	}
	n := filewatch.Notifier{Path: s.path, What: "lease file", Log: s.log, Open: s.newNotify}
	defer n.Close()
	for {
		n.Arm()
		u, ok, err := f.next(ctx)
		if err != nil {
			return err
		}
		if ok {
			s.current.Store(f.now)
			if err := send(u); err != nil {
				return err
			}
		}
		if err := n.Wait(ctx); err != nil {
			return err
		}
	}
}

// follower is the state of one Watch: what its receiver has been sent.
type follower struct {
	path string
	now  *version // in force
	seen string   // the last text or, after a NUL, the reason why there was none
}

func newFollower(path string, now *version) *follower {
	return &follower{path, now, now.text}
}

func (f *follower) snapshot() lease.Update {
	return lease.Update{Config: f.now.config, Snapshot: true, Put: f.now.leases}
}

// next reads the file and returns the resulting update, if any; a text that was
// already read results in none. An invalid text is read again after a moment, since
// its writer may not have finished, and is refused if it is unchanged. next returns
// an error only when ctx is done.
func (f *follower) next(ctx context.Context) (u lease.Update, ok bool, err error) {
	for before := f.seen; ; {
		text, err := readFile(f.path)
		seen := text
		if err != nil {
			seen = "\x00" + err.Error()
		}
		if seen == f.seen {
			return lease.Update{}, false, nil
		}
		var v *version
		if err == nil {
			v, err = parse(f.path, text)
		}
		switch {
		case err == nil:
			f.seen = seen
			return f.change(v), true, nil
		case seen == before:
			f.seen = seen
			return lease.Update{Err: err}, true, nil
		}
		before = seen
		select {
		case <-time.After(filewatch.Settle):
		case <-ctx.Done():
			return lease.Update{}, false, ctx.Err()
		}
	}
}

// change puts v into force and returns the changes.
func (f *follower) change(v *version) lease.Update {
	u := lease.NewSet(f.now.leases).Diff(v.leases)
	if !v.config.Equal(f.now.config) {
		u.Config = v.config
	}
	f.now = v
	return u
}
