package static

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
)

// text is a lease file with a subnet for each number.
func text(subnets ...int) string {
	var entries []string
	for _, n := range subnets {
		entries = append(entries, fmt.Sprintf(`{"Subnet":"10.5.%d.0/24","PublicIP":"192.0.2.%[1]d"}`, n))
	}
	return `{"Network":"10.5.0.0/16","Leases":[` + strings.Join(entries, ",\n") + `]}`
}

// watching is a running Watch.
type watching struct {
	*testing.T
	store   *Store
	updates chan lease.Update
	cancel  context.CancelFunc
	done    chan error
}

func watch(t *testing.T, path string, change func(*Store)) *watching {
	t.Helper()
	var log bytes.Buffer
	s, err := Open(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{t, s, make(chan lease.Update), cancel, make(chan error, 1)}
	go func() { w.done <- s.Watch(ctx, w.updates) }()
	t.Cleanup(func() {
		cancel()
		<-w.done
		if t.Failed() {
			t.Log(log.String())
		}
	})
	if u := w.next(); !u.Snapshot || u.Config == nil {
		t.Fatalf("the first update is %+v, want a snapshot with the config", u)
	}
	return w
}

func (w *watching) next() lease.Update {
	w.Helper()
	return testkit.Receive(w, "there is an update", w.updates)
}

// expect waits for an update that puts and deletes these subnets, and no more.
func (w *watching) expect(put, deleted []int) {
	w.Helper()
	u := w.next()
	var got, gone, want, wantGone []lease.Key
	for _, l := range u.Put {
		got = append(got, l.Key())
	}
	gone = append(gone, u.Delete...)
	for _, n := range put {
		want = append(want, lease.Key(fmt.Sprintf("10.5.%d.0-24", n)))
	}
	for _, n := range deleted {
		wantGone = append(wantGone, lease.Key(fmt.Sprintf("10.5.%d.0-24", n)))
	}
	if u.Err != nil || u.Snapshot || u.Config != nil || !slices.Equal(got, want) || !slices.Equal(gone, wantGone) {
		w.Fatalf("got update %+v, want put %v, delete %v", u, want, wantGone)
	}
}

func (w *watching) expectErr(part string) {
	w.Helper()
	u := w.next()
	if u.Err == nil || !strings.Contains(u.Err.Error(), part) {
		w.Fatalf("got update %+v, want the error %q", u, part)
	}
	if u.Put != nil || u.Delete != nil || u.Config != nil || u.Snapshot {
		w.Fatalf("an update with an error says more: %+v", u)
	}
}

// replace does what mv and most editors do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".new", text)
	testkit.Must(t, os.Rename(path+".new", path))
}

func TestAChangeIsSentAsADifference(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1, 2, 3))
	w := watch(t, path, nil)
	write(t, path, text(1, 3, 4))
	w.expect([]int{4}, []int{2})
	write(t, path, strings.Replace(text(1, 3, 4), "192.0.2.3", "192.0.2.33", 1))
	w.expect([]int{3}, nil)
	// Acquire and Config follow.
	if _, err := w.store.Acquire(context.Background(), attrs("192.0.2.33", ""), lease.Previous{}); err != nil {
		t.Error(err)
	}
}

func TestAFileIsFollowedHoweverItIsReplaced(t *testing.T) {
	for _, tt := range []struct {
		name string
		// make puts the first text in place and returns a function that puts
		// another there.
		make func(t *testing.T, dir, path, first string) func(text string)
	}{
		{"written in place", func(t *testing.T, _, path, first string) func(string) {
			write(t, path, first)
			return func(text string) { write(t, path, text) }
		}},
		{"renamed over", func(t *testing.T, _, path, first string) func(string) {
			write(t, path, first)
			return func(text string) { replace(t, path, text) }
		}},
		{"deleted and recreated", func(t *testing.T, _, path, first string) func(string) {
			write(t, path, first)
			return func(text string) {
				testkit.Must(t, os.Remove(path))
				write(t, path, text)
			}
		}},
		{"old one renamed away", func(t *testing.T, _, path, first string) func(string) {
			write(t, path, first)
			return func(text string) {
				testkit.Must(t, os.Rename(path, path+"~"))
				write(t, path, text)
			}
		}},
		{"directory recreated", func(t *testing.T, _, path, first string) func(string) {
			fill := func(text string) {
				testkit.Must(t, os.Mkdir(filepath.Dir(path), 0o755))
				write(t, path, text)
			}
			fill(first)
			return func(text string) {
				testkit.Must(t, os.RemoveAll(filepath.Dir(path)))
				fill(text)
			}
		}},
		{"ConfigMap", func(t *testing.T, dir, path, first string) func(string) {
			// As the kubelet's atomic writer does: a directory for each
			// version, the link ..data to the one in force, and links to the
			// files in it.
			data, version := filepath.Join(filepath.Dir(path), "..data"), 0
			swap := func(text string) {
				version++
				name := fmt.Sprintf("..2026_%d", version)
				testkit.Must(t, os.MkdirAll(filepath.Join(filepath.Dir(path), name), 0o755))
				write(t, filepath.Join(filepath.Dir(path), name, "leases.json"), text)
				testkit.Must(t, os.Symlink(name, data+"_tmp"))
				old, _ := os.Readlink(data)
				testkit.Must(t, os.Rename(data+"_tmp", data))
				if old != "" {
					testkit.Must(t, os.RemoveAll(filepath.Join(filepath.Dir(path), old)))
				}
			}
			swap(first)
			testkit.Must(t, os.Symlink("..data/leases.json", path))
			return swap
		}},
		{"link to another directory", func(t *testing.T, dir, path, first string) func(string) {
			version := 0
			swap := func(text string) {
				version++
				release := filepath.Join(dir, "releases", fmt.Sprint(version))
				testkit.Must(t, os.MkdirAll(release, 0o755))
				write(t, filepath.Join(release, "leases.json"), text)
				testkit.Must(t, os.Symlink(release, filepath.Join(dir, "next")))
				testkit.Must(t, os.Rename(filepath.Join(dir, "next"), filepath.Dir(path)))
			}
			swap(first)
			return swap
		}},
		{"written behind a link", func(t *testing.T, dir, path, first string) func(string) {
			testkit.Must(t, os.Mkdir(filepath.Dir(path), 0o755))
			far := filepath.Join(dir, "far.json")
			write(t, far, first)
			testkit.Must(t, os.Symlink("../far.json", path))
			return func(text string) { write(t, far, text) }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "etc", "leases.json")
			switch tt.name {
			case "written in place", "renamed over", "deleted and recreated", "old one renamed away":
				testkit.Must(t, os.Mkdir(filepath.Dir(path), 0o755))
			}
			if tt.name == "ConfigMap" {
				testkit.Must(t, os.Mkdir(filepath.Dir(path), 0o755))
			}
			put := tt.make(t, dir, path, text(1, 2))
			w := watch(t, path, nil)
			put(text(1))
			w.expect(nil, []int{2})
			put(text(1, 3))
			w.expect([]int{3}, nil)
			put(text(3, 4))
			w.expect([]int{4}, []int{1})
		})
	}
}

func TestAnInvalidVersionIsReportedOnceAndTheLastGoodOneStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1, 2))
	w := watch(t, path, nil)

	broken := strings.Replace(text(1, 2, 3), "10.5.3.0", "10.5.1.0", 1)
	replace(t, path, broken)
	w.expectErr(`leases.json:3: Leases[2].Subnet "10.5.1.0/24" overlaps Leases[0].Subnet "10.5.1.0/24" (line 1)`)
	if _, err := w.store.Acquire(context.Background(), attrs("192.0.2.2", ""), lease.Previous{}); err != nil {
		t.Errorf("a broken version has put the last good one out of force: %v", err)
	}
	replace(t, path, broken) // the same again is not reported
	replace(t, path, "{")
	w.expectErr("leases.json:1:2: unexpected end of JSON input")
	replace(t, path, text(2, 3))
	w.expect([]int{3}, []int{1})
	// Broken and repaired without a change: an empty update reports that
	// what is in force is in the file again.
	replace(t, path, "{")
	w.expectErr("unexpected end")
	replace(t, path, text(2, 3))
	w.expect(nil, nil)
}

// The file may have become one without an end, which would take all memory, or a pipe,
// which would block.
func TestWhatIsNoLeaseFileIsReportedAndTheLastGoodOneStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1, 2))
	w := watch(t, path, nil)
	endless := path + ".new"
	write(t, endless, "")
	testkit.Must(t, os.Truncate(endless, 1<<40), os.Rename(endless, path))
	w.expectErr("too large: more than 16777216 bytes")
	testkit.Must(t, unix.Mkfifo(endless, 0o644), os.Rename(endless, path))
	w.expectErr("not a regular file")
	if _, err := w.store.Acquire(context.Background(), attrs("192.0.2.2", ""), lease.Previous{}); err != nil {
		t.Errorf("the last good version is out of force: %v", err)
	}
	replace(t, path, text(2, 3))
	w.expect([]int{3}, []int{1})
}

func TestAMissingFileIsReportedAndItsReturnIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1, 2))
	w := watch(t, path, nil)
	testkit.Must(t, os.Remove(path))
	w.expectErr("no such file or directory")
	write(t, path, text(1, 2, 3))
	w.expect([]int{3}, nil)
}

func TestAChangeOfTheConfigIsReported(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1))
	w := watch(t, path, nil)
	replace(t, path, strings.Replace(text(1, 2), `{`, `{"Backend":{"Type":"udp","Port":9000},`, 1))
	u := w.next()
	if u.Config == nil || string(u.Config.Backend.Raw) != `{"Type":"udp","Port":9000}` || len(u.Put) != 1 {
		t.Fatalf("got %+v, want the new config and one lease", u)
	}
	if c, _ := w.store.Config(context.Background()); !c.Equal(u.Config) {
		t.Errorf("Config returns %+v", c)
	}
}

func TestWatchSendsWhatChangedSinceOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1))
	w := watch(t, path, func(*Store) { replace(t, path, text(1, 2)) })
	w.expect([]int{2}, nil)
}

func TestWithoutInotifyTheFileIsPolled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1))
	var log bytes.Buffer
	w := watch(t, path, func(s *Store) {
		s.log = slog.New(slog.NewTextHandler(&log, nil))
		s.newNotify = func() (*fsnotify.Watcher, error) { return nil, errors.New("too many open files") }
	})
	replace(t, path, text(1, 2))
	w.expect([]int{2}, nil)
	replace(t, path, text(2))
	w.expect(nil, []int{1})
	w.cancel()
	if err := <-w.done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch returned %v", err)
	}
	w.done <- nil
	if n := strings.Count(log.String(), "polling it every second"); n != 1 {
		t.Errorf("the log says %d times that the file is polled:\n%s", n, &log)
	}
}

func TestWatchEndsAndLeavesNothingOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "leases.json")
	write(t, path, text(1))
	before := testkit.Descriptors(t)
	for n := range 3 {
		w := watch(t, path, nil)
		write(t, path, text(1, n+2))
		w.next()
		w.cancel()
		if err := <-w.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v", err)
		}
		w.done <- nil
	}
	// fsnotify closes its descriptors from a goroutine of its own.
	testkit.Eventually(t, "no more descriptors than before", func() bool { return testkit.Descriptors(t) <= before })
}
