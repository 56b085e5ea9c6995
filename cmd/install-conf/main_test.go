package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestInstallReplacesTheFileWhole(t *testing.T) {
	dir := t.TempDir()
	src, dest := filepath.Join(dir, "src"), filepath.Join(dir, "net.d", "10-flannel.conflist")
	write := func(path, text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Dir(dest), 0o755); err != nil {
		t.Fatal(err)
	}
	write(src, "new", 0o664)
	if err := os.Chmod(src, 0o664); err != nil {
		t.Fatal(err)
	}
	write(dest, "old", 0o600)
	write(filepath.Join(dir, "net.d", ".10-flannel.conflist.tmp"), "left by a killed run, and longer", 0o600)
	reader, err := os.Open(dest)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()

	umask := syscall.Umask(0o077)
	err = install(src, dest)
	syscall.Umask(umask)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(dest); err != nil || string(text) != "new" {
		t.Errorf("installed %q, %v", text, err)
	}
	if info, err := os.Stat(dest); err != nil || info.Mode() != 0o664 {
		t.Errorf("mode %v, %v; want that of the source", info.Mode(), err)
	}
	old := make([]byte, 8)
	if n, _ := reader.Read(old); string(old[:n]) != "old" {
		t.Errorf("a reader in the middle got %q, want the old text", old[:n])
	}
	if entries, err := os.ReadDir(filepath.Dir(dest)); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

func TestInstallThatFailsLeavesTheOldFile(t *testing.T) {
	dir := t.TempDir()
	src, dest := filepath.Join(dir, "src"), filepath.Join(dir, "dest")
	if err := os.WriteFile(dest, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ src, dest, names string }{
		{src, dest, src}, // no source
		{dir, dest, dir}, // a directory
		{dest, filepath.Join(dir, "no", "such"), "no/.such"}, // no directory to put it in
	} {
		if err := install(tt.src, tt.dest); err == nil || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("install %s %s: %v, want %q in the error", tt.src, tt.dest, err, tt.names)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	if text, err := os.ReadFile(dest); err != nil || string(text) != "old" {
		t.Errorf("now %q, %v", text, err)
	}
}
