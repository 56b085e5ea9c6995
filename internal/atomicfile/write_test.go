package atomicfile

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestFileIsReplacedWithItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, text := range []string{"old", "new"} {
		if err := Write(path, []byte(text), 0o604); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o604 || read(t, path) != text {
			t.Errorf("got %v, %v", info, err)
		}
	}
	if _, err := os.Lstat(Temp(path)); err == nil {
		t.Error("the temporary file is left")
	}
}

// TestNoLinkIsFollowed: another user who may write to the directory could have twilld
// overwrite any file of the host.
func TestNoLinkIsFollowed(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "file")
	if err := os.WriteFile(victim, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{Temp(path), path} {
		if err := os.Symlink(victim, at); err != nil {
			t.Fatal(err)
		}
		if err := Write(path, []byte("text"), 0o644); err != nil {
			t.Errorf("link at %s: %v", at, err)
		}
		if got := read(t, victim); got != "secret" {
			t.Fatalf("link at %s: the file it leads to is now %q", at, got)
		}
		if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || read(t, path) != "text" {
			t.Errorf("link at %s: wrote %v, %v", at, info, err)
		}
		os.Remove(path)
	}
	if info, err := os.Stat(victim); err != nil || info.Mode() != 0o600 {
		t.Errorf("the other file: %v, %v", info, err)
	}
}

func TestDirectoryThatAllMayWriteToIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "file")
	for mode, want := range map[fs.FileMode]string{0o777: "chmod o-w " + dir, 0o777 | fs.ModeSticky: "", 0o755: ""} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		err := Write(path, nil, 0o644)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("mode %v: got %v, want %q", mode, err, want)
		}
	}
}
