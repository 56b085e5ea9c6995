package netlab

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A name can be removed although another program has given its first one since.
func TestNameIsRemovedBesideThoseOfOtherPrograms(t *testing.T) {
	err := errOnThread(func() error {
		// A /run of its own, in which no name has been created yet.
		if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_NEWNET),
			unix.Mount("", "/", "none", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("run", "/run", "tmpfs", 0, "")); err != nil {
			return err
		}
		path := filepath.Join(nameDir, "ours")
		if err := giveName(path); err != nil {
			return err
		}
		if out, err := exec.Command("ip", "netns", "add", "theirs").CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
		if err := removeName(path); err != nil {
			return err
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
