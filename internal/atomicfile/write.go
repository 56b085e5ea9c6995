// Package atomicfile replaces files that other programs read, in directories where
// other users may have planted files or links.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Write replaces the file at path. A reader sees either the old text or the new one,
// even after a crash. The file has exactly mode, whatever the umask. No symbolic link
// is followed, neither at path nor at the temporary name that the text is written to
// first, and a directory in which any user could replace the file is refused.
func Write(path string, text []byte, mode fs.FileMode) error {
	if err := checkDir(filepath.Dir(path)); err != nil {
		return err
	}
	temp := Temp(path)
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// Temp is the name under which a new text of the file at path is written. It is fixed,
// so that the next writer removes the file that a killed writer left.
func Temp(path string) string {
	dir, name := filepath.Split(path)
	return dir + "." + name + ".new"
}

// checkDir refuses a directory that all users may write to, unless they may only
// remove their own files there, as in /tmp.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if m := info.Mode(); m.Perm()&0o002 != 0 && m&fs.ModeSticky == 0 {
		return fmt.Errorf("directory %s: every user may replace files in it (mode %04o); remove that permission (chmod o-w %[1]s)", dir, m.Perm())
	}
	return nil
}
