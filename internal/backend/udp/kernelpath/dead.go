//go:build !nobpf

package kernelpath

import (
	"errors"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
)

// RemoveDead removes what daemons have pinned for TUN devices that are gone, such as those
// of network namespaces that ended without a clean-up. Nothing else would remove them,
// and pins keep programs and maps in memory. A device is gone if the link of its program
// is attached to nothing. Where programs are attached by clsact (before Linux 6.6) there
// is no such link, and only maps are left.
func RemoveDead() error {
	files, err := filepath.Glob(filepath.Join(pinRoot, "net-*", "*", pathProgEncapsulate))
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		if attached(file) {
			continue
		}
		pins := filepath.Dir(file)
		errs = append(errs, os.RemoveAll(pins), removeEmpty(filepath.Dir(pins)))
	}
	return errors.Join(errs...)
}

// attached reports whether the link pinned at file is attached to an interface, or may be.
func attached(file string) bool {
	l, err := link.LoadPinnedLink(file, nil)
	if err != nil {
		return true // removed meanwhile, or not accessible
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return true
	}
	tcx := info.TCX()
	return tcx == nil || tcx.Ifindex != 0
}
