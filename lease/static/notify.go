package static

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
	// settle is how long a file must be left alone before it is read: an
	// editor truncates, writes and renames within a few milliseconds.
	settle = 50 * time.Millisecond
	// settleMost bounds the wait where the writing does not end.
	settleMost = 500 * time.Millisecond
	// pollEvery is how often the file is read where there is no inotify.
	pollEvery = time.Second
)

// notifier waits until the file at path may have changed. It watches every directory
// on the way there, so it notices when the file is written, replaced by a rename or
// created again, and the same for each directory and symbolic link above it
// (Kubernetes swaps a link "..data" to change a ConfigMap).
type notifier struct {
	path string
	log  *slog.Logger
	open func() (*fsnotify.Watcher, error)

	fs   *fsnotify.Watcher // nil before arm, and when polling
	way  []string          // the names whose change matters
	poll bool
}

// arm watches the way that leads to the file now. Where inotify is not available it
// logs that once, and wait polls.
func (n *notifier) arm() {
	n.close()
	if n.poll {
		return
	}
	if err := n.listen(); err != nil {
		n.close()
		n.poll = true
		n.log.Warn("cannot watch lease file, polling it every second",
			logging.KeyPath, n.path, logging.KeyError, err,
			logging.KeyRemedy, "raise fs.inotify.max_user_instances and fs.inotify.max_user_watches")
	}
}

func (n *notifier) listen() (err error) {
	if n.fs, err = n.open(); err != nil {
		return fmt.Errorf("open inotify: %w", err)
	}
	n.way = nil
	for {
		way, err := steps(n.path)
		if err != nil {
			return err
		}
		if slices.Equal(way, n.way) {
			return nil // nothing moved while the watches were set
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

func (n *notifier) close() {
	if n.fs != nil {
		n.fs.Close()
		n.fs = nil
	}
}

// wait returns nil when the file may have changed and has settled, or is due to
// be polled, and ctx.Err() when ctx is done.
func (n *notifier) wait(ctx context.Context) error {
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
		settled = time.After(settle)
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
