package static

import (
	"context"

	"github.com/twillnet/twill/lease"
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
	n := notifier{path: s.path, log: s.log, open: s.newNotify}
	defer n.close()
	for {
		n.arm() // before the file is read, so that no change falls between
		text, err := readFile(s.path)
		if u, ok := f.step(text, err); ok {
			s.current.Store(f.now)
			if err := send(u); err != nil {
				return err
			}
		}
		if err := n.wait(ctx); err != nil {
			return err
		}
	}
}

// follower knows what a watcher has been told.
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

// step returns the update that a reading of the file makes, if it makes one.
// What was read before makes none, so a refusal is told once.
func (f *follower) step(text string, err error) (u lease.Update, ok bool) {
	seen := text
	if err != nil {
		seen = "\x00" + err.Error()
	}
	if seen == f.seen {
		return lease.Update{}, false
	}
	f.seen = seen
	if err != nil {
		return lease.Update{Err: err}, true
	}
	v, err := parse(f.path, text)
	if err != nil {
		return lease.Update{Err: err}, true
	}
	u = lease.NewSet(f.now.leases).Diff(v.leases)
	if !v.config.Equal(f.now.config) {
		u.Config = v.config
	}
	f.now = v
	return u, true
}
