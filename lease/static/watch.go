package static

import (
	"context"
	"time"

	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/internal/filewatch"
)

// Watch sends the last good version as a snapshot and then what changes in the
// file: an update with the difference for each good version; one with Err, an
// *Error or what the file system said, for each text that is refused; an empty
// update when the text in force is back after a refused one.
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

// follower is what has been sent to the receiver of one Watch.
type follower struct {
	path string
	now  *version // in force
	seen string   // the last text or, after a NUL, why there was none
}

func newFollower(path string, now *version) *follower {
	return &follower{path, now, now.text}
}

func (f *follower) snapshot() lease.Update {
	return lease.Update{Config: f.now.config, Snapshot: true, Put: f.now.leases}
}

// next reads the file and returns the update that it makes, if it makes one: a
// text that was read before does not. What cannot be used is read again after a
// moment, since its writer may be in the middle, and is refused when it has
// stayed as it was. next returns an error only when ctx is done.
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

// change puts v in force and returns what it changes.
func (f *follower) change(v *version) lease.Update {
	u := lease.NewSet(f.now.leases).Diff(v.leases)
	if !v.config.Equal(f.now.config) {
		u.Config = v.config
	}
	f.now = v
	return u
}
