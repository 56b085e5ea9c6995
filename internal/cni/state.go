package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/atomicfile"
)

// attachment is one interface of one container.
type attachment struct {
	container, ifName string
}

// primary is the interface name that runtimes use for a pod's main network.
const primary = "eth0"

// fileName returns the name of the file in which an attachment is saved. Stock
// flannel's plugin uses the container ID alone, so it loses one of two
// attachments. Here the primary attachment is named as by the stock plugin, which
// can therefore take over from this one. For any other, a colon, which no
// container ID contains, and the name of the interface are appended.
func (a attachment) fileName() string {
	if a.ifName == primary {
		return a.container
	}
	return a.container + ":" + a.ifName
}

// attachmentOf is the inverse of fileName.
func attachmentOf(fileName string) attachment {
	container, ifName, ok := strings.Cut(fileName, ":")
	if !ok {
		ifName = primary
	}
	return attachment{container, ifName}
}

// stateDir is the directory of the saved configurations, dataDir in the plugin's
// configuration. Calls for different attachments may run at the same time.
type stateDir string

// malformedError is a saved configuration that cannot be used.
type malformedError struct {
	path string
	err  error
}

func (e *malformedError) Error() string { return fmt.Sprintf("%s is damaged: %v", e.path, e.err) }
func (e *malformedError) Unwrap() error { return e.err }

// saved is a configuration as read from disk.
type saved struct {
	delegate
	network string
	byStock bool // written by the stock plugin, for an unknown interface
}

// maxSaved bounds the size of a saved configuration in bytes.
const maxSaved = 1 << 20

// read reads a file of the directory.
func (dir stateDir) read(file string) (saved, error) {
	path := filepath.Join(string(dir), file)
	text, err := atomicfile.Read(path, 0, maxSaved)
	if err != nil {
		return saved{}, fmt.Errorf("read saved configuration: %w", err)
	}
	// save ends its files with a line feed; the stock plugin does not.
	s := saved{byStock: !bytes.HasSuffix(text, []byte("\n"))}
	if err := json.Unmarshal(text, &s.delegate); err != nil {
		return s, &malformedError{path, err}
	}
	if err := object(s.delegate).get("name", &s.network); err != nil {
		return s, &malformedError{path, fmt.Errorf("name: %w", err)}
	}
	if s.plugin() == "" {
		return s, &malformedError{path, errors.New("it does not name a plugin")}
	}
	return s, nil
}

// load returns the configuration of an attachment to a network and the file that it
// is in, which is also valid with a malformedError. The error wraps os.ErrNotExist
// if nothing is saved.
func (dir stateDir) load(a attachment, network string) (delegate, string, error) {
	file := a.fileName()
	s, err := dir.read(file)
	if errors.Is(err, os.ErrNotExist) && a.ifName != primary {
		// The stock plugin may have saved it under the ID alone.
		file = a.container
		if s, err = dir.read(file); err == nil && !s.byStock {
			return nil, "", os.ErrNotExist // the primary interface's
		}
	}
	if err == nil && s.byStock && s.network != network {
		return nil, "", os.ErrNotExist // the stock plugin's, for another network of the container
	}
	return s.delegate, file, err
}

// save writes the configuration of an attachment. After a crash the file is
// either complete or absent.
func (dir stateDir) save(a attachment, d delegate) error {
	if err := dir.write(a.fileName(), append(d.text(), '\n')); err != nil {
		return fmt.Errorf("save configuration: %w; name another directory with dataDir", err)
	}
	return nil
}

func (dir stateDir) write(file string, text []byte) error {
	if err := os.MkdirAll(string(dir), 0o700); err != nil {
		return err
	}
	if err := atomicfile.Write(filepath.Join(string(dir), file), text, 0o600); err != nil {
		return err
	}
	return dir.sync()
}

// unfinished is the name of a file while it is written. No container ID begins
// with a dot.
func unfinished(file string) string { return atomicfile.Temp(file) }

// sync makes the directory's entries durable: an address that a delegate allocates
// must not outlive the record needed to release it.
func (dir stateDir) sync() error {
	f, err := os.Open(string(dir))
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// remove removes a file of the directory. A missing file is not an error, not even on a
// read-only file system, where the kernel refuses to remove it before it looks it up.
func (dir stateDir) remove(file string) error {
	path := filepath.Join(string(dir), file)
	err := os.Remove(path)
	if errors.Is(err, unix.EROFS) {
		if _, missing := os.Lstat(path); missing != nil {
			err = missing
		}
	}
	switch {
	case err == nil || errors.Is(err, os.ErrNotExist):
		return nil
	case errors.Is(err, unix.EROFS):
		err = fmt.Errorf("%w; make the file system of dataDir writable", err)
	}
	return fmt.Errorf("remove saved configuration: %w", err)
}

// files returns the names of the saved files. A missing directory counts as empty.
func (dir stateDir) files() (names []string, err error) {
	entries, err := os.ReadDir(string(dir))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, err
}
