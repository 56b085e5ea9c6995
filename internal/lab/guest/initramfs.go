package guest

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// initScript is the first process of a guest.
//
//go:embed init.sh
var initScript []byte

// writeInitramfs writes the archive that is the guest's root file system, in the
// format that the kernel unpacks (Documentation/driver-api/early-userspace/
// buffer-format.rst). It is not compressed: decompression would take the emulated
// CPU longer than the larger read.
func writeInitramfs(to string, c Config) (err error) {
	modules, err := c.Image.modules(c.Modules)
	if err != nil {
		return fmt.Errorf("create initramfs: %w", err)
	}
	f, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("create initramfs: %w", err)
	}
	a := archive{w: cpio.NewWriter(f), dirs: make(map[string]bool)}
	defer func() {
		if err = errors.Join(err, a.w.Close(), f.Close()); err != nil {
			err = fmt.Errorf("create initramfs: %w", err)
		}
	}()
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "run", "etc", "usr/sbin"} {
		if err := a.dir(dir); err != nil {
			return err
		}
	}
	if err := a.file("init", initScript); err != nil {
		return err
	}
	if err := a.copy("bin/busybox", c.Image.busybox()); err != nil {
		return err
	}
	for n, module := range modules {
		// init loads modules in the order of their names.
		if err := a.copy(fmt.Sprintf("modules/%02d-%s", n, path.Base(module)), module); err != nil {
			return err
		}
	}
	for name, from := range c.Files {
		if err := a.copy(strings.TrimPrefix(name, "/"), from); err != nil {
			return err
		}
	}
	return nil
}

// archive is a cpio archive that adds missing directories itself. Everything in it
// is owned by root and executable.
type archive struct {
	w    *cpio.Writer
	dirs map[string]bool
}

func (a archive) dir(name string) error {
	if name == "." || a.dirs[name] {
		return nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	a.dirs[name] = true
	return a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeDir | 0o755, Links: 2})
}

func (a archive) file(name string, content []byte) error {
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	err := a.w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Links: 1, Size: int64(len(content))})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = a.w.Write(content)
	return err
}

func (a archive) copy(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return a.file(name, content)
}
