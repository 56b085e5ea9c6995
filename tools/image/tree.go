package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// tree is the content of a layer, by path without a leading slash.
type tree map[string]entry

// entry is a file, a directory or a symbolic link.
type entry struct {
	mode fs.FileMode // type and permissions, setuid and the like included
	data []byte
	link string
}

func (t tree) dir(name string, perm fs.FileMode)         { t[name] = entry{mode: fs.ModeDir | perm} }
func (t tree) link(name, target string)                  { t[name] = entry{mode: fs.ModeSymlink | 0o777, link: target} }
func (t tree) file(name string, p fs.FileMode, b []byte) { t[name] = entry{mode: p, data: b} }

// program adds a program from the disk.
func (t tree) program(name, from string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	t.file(name, 0o755, data)
	return nil
}

// read adds the files of a tar archive that keep accepts. A name that is reached
// through a link of merged /usr, such as /lib/x, is stored under the link's target.
func (t tree) read(archive *tar.Reader, keep func(name string) bool) error {
	for {
		h, err := archive.Next()
		if err != nil {
			return endOf(err)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		for _, merged := range []string{"bin/", "sbin/", "lib/", "lib64/"} {
			if strings.HasPrefix(name, merged) {
				name = "usr/" + name
			}
		}
		if name == "" || !keep(name) {
			continue
		}
		switch h.Typeflag {
		case tar.TypeDir:
			t[name] = entry{mode: h.FileInfo().Mode()}
		case tar.TypeSymlink:
			t.link(name, h.Linkname)
		case tar.TypeReg:
			var b bytes.Buffer
			if _, err := b.ReadFrom(archive); err != nil {
				return err
			}
			t[name] = entry{mode: h.FileInfo().Mode(), data: b.Bytes()}
		default:
			return fmt.Errorf("%s is of type %q, which no image needs", name, h.Typeflag)
		}
	}
}

// tar returns the layer as an archive: the same content gives the same bytes. All
// files belong to root, and all times are at.
func (t tree) tar(at time.Time) ([]byte, error) {
	all := maps.Clone(t)
	for name := range t {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if _, ok := all[dir]; !ok {
				all.dir(dir, 0o755)
			}
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		e := all[name]
		h, err := tar.FileInfoHeader(entryInfo{name, e}, e.link)
		if err != nil {
			return nil, err
		}
		h.Name = name
		if e.mode.IsDir() {
			h.Name += "/"
		}
		h.ModTime, h.Uname, h.Gname, h.Format = at, "root", "root", tar.FormatPAX
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// entryInfo presents an entry as fs.FileInfo.
type entryInfo struct {
	name string
	entry
}

func (i entryInfo) Name() string       { return path.Base(i.name) }
func (i entryInfo) Size() int64        { return int64(len(i.data)) }
func (i entryInfo) Mode() fs.FileMode  { return i.mode }
func (i entryInfo) ModTime() time.Time { return time.Time{} }
func (i entryInfo) IsDir() bool        { return i.mode.IsDir() }
func (i entryInfo) Sys() any           { return nil }
