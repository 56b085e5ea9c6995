// Command install-conf SRC DEST copies a file so that a reader of DEST sees either
// the old file or the new one, even after a crash. In the image it is flannel's
// /opt/bin/install-conf: an init container installs the CNI configuration with it
// while the container runtime watches the directory.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: install-conf SRC DEST")
		os.Exit(2)
	}
	if err := install(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "install-conf:", err)
		os.Exit(1)
	}
}

// install copies src, with its permissions, beside dest and renames it. The
// temporary name begins with a dot, so runtimes do not take it for a configuration.
// It is always the same, so the next run overwrites what a killed one left.
func install(src, dest string) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", src)
	}
	dir, name := filepath.Split(dest)
	temp := filepath.Join(dir, "."+name+".tmp")
	if err := write(temp, in, info.Mode().Perm()); err != nil {
		_ = os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, dest); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(dest))
}

// write copies in to path and syncs it to disk.
func write(path string, in io.Reader, mode os.FileMode) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// Chmod explicitly: the file may have existed, and the umask clears bits.
	return errors.Join(err, out.Chmod(mode), out.Sync(), out.Close())
}

// syncDir makes a directory's new entry durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
