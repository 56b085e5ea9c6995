package guest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// Image is a kernel with its modules, as downloaded by scripts/fetch-guest.sh.
type Image struct {
	Arch string // Go's name
	dir  string
}

// Linux returns the kernel of a version, "6.1" or "5.10", for an architecture by Go's
// name. If it has not been fetched, the error explains how to fetch it.
func Linux(version, arch string) (Image, error) {
	_, file, _, _ := runtime.Caller(0)
	name := fmt.Sprintf("linux-%s-%s", version, arch)
	i := Image{Arch: arch, dir: filepath.Join(filepath.Dir(file), "..", "..", "..", "bin", "peers", "guest", name)}
	if _, err := os.Stat(filepath.Join(i.dir, "complete")); err != nil {
		return Image{}, fmt.Errorf("%s for guests does not exist (%w): run make guest in the root of the repository", name, err)
	}
	return i, nil
}

func (i Image) kernel() string  { return filepath.Join(i.dir, "vmlinuz") }
func (i Image) busybox() string { return filepath.Join(i.dir, "busybox") }

// modules returns the files of the named modules and of their dependencies,
// in the order in which they have to be loaded. Modules built into the kernel need no
// file.
func (i Image) modules(names []string) ([]string, error) {
	builtin, err := os.ReadFile(filepath.Join(i.dir, "modules", "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("find modules: %w", err)
	}
	placed := make(map[string]bool)
	for path := range strings.Lines(string(builtin)) {
		placed[moduleName(strings.TrimSuffix(filepath.Base(path), ".ko\n"))] = true
	}
	files := make(map[string]string) // by module name
	err = filepath.WalkDir(filepath.Join(i.dir, "modules"), func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			files[moduleName(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find modules: %w", err)
	}
	var ordered []string
	var place func(name string) error
	place = func(name string) error {
		if placed[name] {
			return nil
		}
		placed[name] = true
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("find module %s: not in %s", name, i.dir)
		}
		needed, err := dependencies(path)
		if err != nil {
			return err
		}
		for _, n := range needed {
			if err := place(n); err != nil {
				return fmt.Errorf("%w; %s needs it", err, name)
			}
		}
		ordered = append(ordered, path)
		return nil
	}
	for _, name := range names {
		if err := place(moduleName(name)); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

// moduleName returns a module's name in the kernel's spelling; file names use either.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// dependencies returns the names of the modules that a module file depends on. They
// are listed in its section .modinfo, which is a list of strings KEY=VALUE, each
// terminated by a zero byte (include/linux/moduleparam.h).
func dependencies(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read module: %w", err)
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("read module %s: it has no section .modinfo", path)
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", path, err)
	}
	var names []string
	for entry := range bytes.SplitSeq(info, []byte{0}) {
		if list, ok := bytes.CutPrefix(entry, []byte("depends=")); ok {
			for name := range strings.FieldsFuncSeq(string(list), func(r rune) bool { return r == ',' }) {
				names = append(names, moduleName(name))
			}
		}
	}
	return names, nil
}
