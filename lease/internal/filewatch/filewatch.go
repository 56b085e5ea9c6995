// Package filewatch waits until a file may have changed: written to, replaced by a
// rename, removed and created again, or exchanged through a symbolic link anywhere
// on its path.
package filewatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/twillnet/twill/internal/logging"
)

const (
	// Settle is how long a file must be left alone before it is read: an
	// editor truncates, writes and renames within a few milliseconds.
	Settle = 50 * time.Millisecond
	// settleMost bounds the wait if the file keeps being written.
	settleMost = 500 * time.Millisecond
	// pollEvery is how often the file is read if inotify is unavailable.
	pollEvery = time.Second
)

// Notifier waits until the file at Path may have changed. It watches every directory
// on the path, so it notices when the file, or a directory or symbolic link above it,
// is written, replaced by a rename or created again (Kubernetes swaps a link "..data"
// to change a ConfigMap). It is not safe for concurrent use.
type Notifier struct {
	Path string
	What string // the kind of file, for the log: "lease file"
	Log  *slog.Logger
	// Open opens inotify; nil means fsnotify.NewWatcher.
	Open func() (*fsnotify.Watcher, error)

	fs   *fsnotify.Watcher // nil before Arm, and when polling
	way  []string          // the names whose change matters
	poll bool
}

// Arm starts to watch the path that leads to the file now. Call it before reading
// the file, so that no change is missed in between. If inotify is not available, Arm
// logs that once, and Wait polls.
func (n *Notifier) Arm() {
	n.Close()
	if n.poll {
		return
	}
	if err := n.listen(); err != nil {
		n.Close()
		n.poll = true
		n.Log.Warn("cannot watch file, polling it every second",
			logging.KeyWhat, n.What, logging.KeyPath, n.Path, logging.KeyError, err,
			logging.KeyRemedy, "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches")
	}
}

func (n *Notifier) listen() (err error) {
	open := n.Open
	if open == nil {
		open = fsnotify.NewWatcher
	}
	if n.fs, err = open(); err != nil {
		return fmt.Errorf("open inotify: %w", err)
	}
	n.way = nil
	for {
		way, err := steps(n.Path)
		if err != nil {
			return err
		}
		if slices.Equal(way, n.way) {
			return nil // nothing changed while the watches were set
		}
		n.way = way
		for _, step := range way {
			err := n.fs.Add(filepath.Dir(step))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("watch %s: %w", filepath.Dir(step), err)
			}
		}
	}
}

// Close stops watching.
func (n *Notifier) Close() {
	if n.fs != nil {
		n.fs.Close()
		n.fs = nil
	}
}

// Wait returns nil when the file may have changed and has settled, or is due to
// be polled, and ctx.Err() when ctx is done.
func (n *Notifier) Wait(ctx context.Context) error {
	if n.fs == nil {
		select {
		case <-time.After(pollEvery):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var settled, most <-chan time.Time
	for {
		select {
		case e, ok := <-n.fs.Events:
			if ok && !slices.Contains(n.way, e.Name) {
				continue
			}
		case <-n.fs.Errors: // the queue overflowed: anything may have changed
		case <-settled:
			return nil
		case <-most:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
		settled = time.After(Settle)
		if most == nil {
			most = time.After(settleMost)
		}
	}
}

// maxLinks is how many symbolic links Linux follows in a path.
const maxLinks = 40

// steps returns the names that lead from / to the file at path, through
// directories and symbolic links, each as an absolute path whose directory has
// no links in it. It ends at the first that does not exist.
func steps(path string) ([]string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	var way []string
	dir, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		step := filepath.Join(dir, name)
		way = append(way, step)
		target, err := os.Readlink(step)
		switch {
		case err == nil:
			if links++; links > maxLinks {
				return nil, fmt.Errorf("follow %s: more than %d symbolic links", path, maxLinks)
			}
			if filepath.IsAbs(target) {
				dir = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case errors.Is(err, fs.ErrNotExist):
			return way, nil
		default: // not a link, or not readable
			dir = step
		}
	}
	return way, nil
}
